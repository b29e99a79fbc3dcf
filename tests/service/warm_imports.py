"""What a server imports, fakes and real models alike: imported once, before any fork, and left out of collections."""

from __future__ import annotations

import gc

import bitsandbytes  # noqa: F401
import peft  # noqa: F401
import serving  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import service.__main__  # noqa: F401

gc.collect()
gc.freeze()
