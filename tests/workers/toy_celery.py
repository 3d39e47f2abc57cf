"""The real Celery app, with the toy pipelines."""

from tests.workers.toy import PIPELINES
from workers.app import app

app.conf.featurewatch_pipelines = PIPELINES
