"""A web page that samples from one model: the command `page`. Only `app` and `launch` know gradio."""
