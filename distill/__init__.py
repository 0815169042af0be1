"""Knowledge distillation for language models: generate, train, quantize, serve, evaluate, plan, report."""

import logging

__version__ = "0.1.0"

# bitsandbytes advises at its import to install a faster kernel, on CPUs with AVX-512 BF16; whoever imports it first
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
