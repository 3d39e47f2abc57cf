"""All tables."""

from featurewatch.service.kit.db import Base
from featurewatch.service.models.access import ApiKey, AuditEntry, IdempotencyRecord, WebSession
from featurewatch.service.models.alert import Alert, AlertRule
from featurewatch.service.models.artifact import Artifact, Unreferenced
from featurewatch.service.models.checkpoint import Checkpoint, Source
from featurewatch.service.models.dependency import DependencyGraph
from featurewatch.service.models.family import Deletion, Family
from featurewatch.service.models.feature import Code, Feature
from featurewatch.service.models.lineage import Lineage
from featurewatch.service.models.run import Attempt, Bell, LogLine, Run, Worker
from featurewatch.service.models.shard import Shard
from featurewatch.service.models.signature import Reading, Signature
from featurewatch.service.models.verdict import Measurement, Standing, Verdict
from featurewatch.service.models.webhook import Delivery, Event, Webhook

__all__ = [
    "Alert", "AlertRule", "ApiKey", "Artifact", "Attempt", "AuditEntry", "Base", "Bell", "Checkpoint", "Code",
    "Deletion", "Delivery", "DependencyGraph", "Event", "Family", "Feature", "IdempotencyRecord", "Lineage",
    "LogLine", "Measurement", "Reading", "Run", "Shard", "Signature", "Source", "Standing", "Unreferenced", "Verdict",
    "WebSession", "Webhook", "Worker",
]  # fmt: skip
