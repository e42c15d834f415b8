# `make check` and `make test` are all there is to know; CI runs the same two.
.PHONY: setup demo test soak check format bench docs
.DEFAULT_GOAL := test
bin := .venv/bin

setup: ## .venv, the project, and everything its demo and tests need
	@tools/setup.sh

demo: setup ## the main job, shown with nothing but this machine
	@$(bin)/holdfast demo

test: setup
	@tools/test.sh

soak: setup ## ten minutes of random faults, as root; SEED=7 for those of that run, SECONDS=60 for less
	@$(bin)/python -m tests.soak $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS))

check: setup
	@$(bin)/ruff format --check .
	@$(bin)/ruff check .
	@$(bin)/mypy
	@$(bin)/lint-imports --no-cache | tail -n 12

format: setup
	@$(bin)/ruff format .
	@$(bin)/ruff check --fix-only --quiet .

bench: setup ## every figure in docs/benchmarks.md, measured again
	@$(bin)/python -m bench

docs: setup ## the site in site/, the man page, and the parts of docs/ that are made from the code
	@$(bin)/python -m tools.reference
	@$(bin)/python -m tools.man_page
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet
