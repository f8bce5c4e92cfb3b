"""`tiny`: the small stand-in model that comes with the package. `tools/tiny/` trains it.

It knows only what its training templates say. It shows that a job works, not what a Dolly answers.
"""

from pathlib import Path

MODEL_FOLDER = Path(__file__).parent / "model"
