#!/usr/bin/env bash
set -euo pipefail

tuneline fetch-base smollm2-135m-instruct
prefect --no-prompt work-pool create tuneline --type process --overwrite
prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
exec prefect --no-prompt worker start --pool tuneline
