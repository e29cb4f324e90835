"""Entry points, thin: parse, validate, call the pipeline, print, exit code."""
