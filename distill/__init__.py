"""Knowledge distillation for language models: generate, train, quantize, serve, evaluate, plan, report."""

__version__ = "0.1.0"
