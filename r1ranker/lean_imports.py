"""Importing transformers in half its time: without libraries that it imports where they are installed, and that nothing here asks it for."""

from __future__ import annotations

import atexit
import gc
import sys

ASIDE = ("scipy", "sklearn")
"""for detecting objects, and for drafting with another model"""


def import_transformers() -> None:
    """Import what models need of transformers, which finds none of ASIDE. For a process of our own, before anything else imports it.

    Others find them as before. What of transformers needs them stays away for this process's lifetime. No garbage is
    collected meanwhile, nor looked for later in what was imported.
    """
    if "transformers" in sys.modules:
        return
    hidden = [name for name in ASIDE if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: there is no such module
    gc.disable()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel  # noqa: F401
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries complain of what is left of them
        for name in hidden:
            del sys.modules[name]
