"""`python -m tests.stages.label_stage CONFIG`: the label stage alone; its config as JSON."""

import sys

from prefloop.configs.collect import LabelConfig
from prefloop.stages import label

label.run(LabelConfig.model_validate_json(sys.argv[1]))
