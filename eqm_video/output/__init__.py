"""Pictures, videos and tables: what people look at."""
