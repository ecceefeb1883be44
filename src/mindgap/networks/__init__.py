"""Networks: `Batch`-shaped images in, `Output` out; `card` alone is read without torch."""
