# `make` or `make help` lists the targets; each is `python -m report COMMAND`, which works without make too.
# PROFILE=smoke builds in .smoke/ in minutes, from runs of seconds, and leaves every committed file alone;
# RETRAIN=1 trains recorded runs again, into results/again/, and shows both.

PYTHON ?= python3
REPORT = @$(PYTHON) -m report

export PROFILE RETRAIN TORCH LASTNAME FIRSTNAME ID REPO
.PHONY: help report test lab submission colab site study bench setup clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 19

report: ## data, notebooks, figures, report.pdf and supplement.pdf: whatever is out of date; ALL=1 executes all notebooks
	$(REPORT) build $(if $(ALL),--all)

test: ## style, types, spelling and tests; nothing is downloaded but the packages
	$(REPORT) test

lab: ## open JupyterLab
	$(REPORT) lab

submission: ## LASTNAME=… FIRSTNAME=… ID=…: the zip to hand in
	$(REPORT) submission -- "$$LASTNAME" "$$FIRSTNAME" "$$ID"

colab: ## REPO=owner/name, by default the git remote: write its address and the Colab badges
	$(REPORT) colab -- "$$REPO"

site: ## the web edition: notebooks, report and a reference of lib as pages in .build/site/
	$(REPORT) site

study: ## train what is not recorded; BUDGET=seconds JOBS=runs at the same time FULL=1 on a GPU
	$(REPORT) study $(if $(BUDGET),--budget $(BUDGET)) $(if $(JOBS),--jobs $(JOBS)) $(if $(FULL),--full)

bench: ## measure time and memory of the heads, operations of a step, images per second, runs at once
	$(REPORT) bench

setup: ## install all packages in .venv; the other targets install what they need
	$(REPORT) setup

clean: ## remove the smoke profile's files and caches
	$(REPORT) clean
