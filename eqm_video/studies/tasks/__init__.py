"""The study `tasks`: every video task, for recipes that differ in the draw of gamma."""
