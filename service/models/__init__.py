"""All tables, one file per noun."""

from service.kit.db import Base
from service.models.access import ApiKey, AuditEntry, IdempotencyRecord, WebSession
from service.models.alert import Alert, AlertRule
from service.models.artifact import Artifact
from service.models.checkpoint import Checkpoint, Source
from service.models.deletion import Deletion
from service.models.dependency import DependencyGraph
from service.models.family import Family
from service.models.feature import Code, Feature
from service.models.lineage import Lineage
from service.models.run import Attempt, Bell, LogLine, Run
from service.models.shard import Shard
from service.models.signature import Reading, Signature
from service.models.unreferenced import Unreferenced
from service.models.verdict import Measurement, Standing, Verdict
from service.models.webhook import Delivery, Event, Webhook
from service.models.worker import Worker

__all__ = [
    "Alert", "AlertRule", "ApiKey", "Artifact", "Attempt", "AuditEntry", "Base", "Bell", "Checkpoint", "Code",
    "Deletion", "Delivery", "DependencyGraph", "Event", "Family", "Feature", "IdempotencyRecord", "Lineage",
    "LogLine", "Measurement", "Reading", "Run", "Shard", "Signature", "Source", "Standing", "Unreferenced", "Verdict",
    "WebSession", "Webhook", "Worker",
]  # fmt: skip
