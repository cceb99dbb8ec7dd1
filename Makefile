# A clean clone needs only make and a Python >= 3.11 with pip: both commands build their own .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo demo-robot demo-noisegate test format

demo: .venv/installed
	rm -rf runs/demo
	OMP_NUM_THREADS=1 $(BIN)/flowrl train configs/image/digits_g2rpo.yaml run_dir=runs/demo

demo-robot: .venv/installed-robot
	rm -rf runs/demo_robot
	OMP_NUM_THREADS=1 $(BIN)/flowrl compose search configs/robot/compose_push.yaml run_dir=runs/demo_robot

demo-noisegate: .venv/installed-pusht
	rm -rf runs/demo_noisegate
	OMP_NUM_THREADS=1 $(BIN)/flowrl train configs/robot/gate_demo.yaml run_dir=runs/demo_noisegate

test: .venv/installed-dev .venv/open-clip
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv .venv

# The stamps make a second run start at once; a changed pyproject.toml installs again.
.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-robot: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[metaworld]"
	touch $@ .venv/installed

.venv/installed-pusht: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[pusht]"
	touch $@ .venv/installed

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/installed .venv/installed-robot .venv/installed-pusht

# open_clip brings torchvision, whose only build may not match torch and would then break diffusers: its tests run in a process of their own, on this folder.
MATCHING_TORCHVISION = $(BIN)/python -c "import torch; print(f'torchvision==0.{int(torch.__version__.split(chr(46))[1]) + 15}.*')"
.venv/open-clip: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "open-clip-torch>=3.0,<4" ftfy timm wcwidth "$$($(MATCHING_TORCHVISION))" \
		|| echo "open_clip could not be installed here: its tests are skipped"
