"""The verifiable task world: families of prompts with reference answers and verdicts."""
