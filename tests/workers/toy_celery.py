"""The real Celery app, with the toy pipelines."""

from featurewatch.workers.app import app

app.conf.featurewatch_pipelines = "tests.workers.toy:PIPELINES"
