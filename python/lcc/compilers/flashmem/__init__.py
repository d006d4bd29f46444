"""FlashMem as a compiler: trained modules write latents from the model's own frozen K and V (arXiv 2601.05505)."""
