"""Classifiers that plain PEFT and transformers' Trainer made, given to ``laplora.fit`` and then served."""
