"""Folders of Hugging Face ``transformers``: a cut model that ``from_pretrained`` reads."""
