"""The data of `benchmarks.service`, small: a lineage with branches in which everything happens that the rule knows."""

from benchmarks.service_data import EXAMPLES, FAMILY, NEW, Filler, Lineage, parent_of
from featurewatch.service.config import Settings
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic as features
from featurewatch.service.features import queries
from featurewatch.service.labels.passages import Passages


def test_lineage_is_a_chain_with_branches() -> None:
    parents = {number: parent_of(number) for number in range(50)}
    assert parents[0] is None and parents[1] == 0 and parents[9] == 3 and parents[10] == 8
    assert all(parent is None or parent < number for number, parent in parents.items())


def test_statuses_and_marks(settings: Settings) -> None:
    filler = Filler(settings, Lineage(4000, ["resid_post.1"], 0))
    filler.fill(4)
    with filler.database() as database, database.read() as session:
        family = families.get(session, FAMILY)
        assert family.n_features == 4000 + 3 * NEW
        found = [features.comparison(session, family, f"v{place}", None) for place in range(4)]
        assert set(found[0].table.counts) == {"present", "indeterminate"}
        every = set().union(*(one.table.counts for one in found))
        assert every >= {"present", "suppressed", "absent", "replaced", "emerged", "indeterminate"}
        assert all(one.table.counts["present"] > 0.8 * 4000 for one in found)
        assert 0 < len(found[0].watched) < 40
        passages = Passages(filler.artifacts, family, next(code for code, _ in queries.codes(session, family.id)))
        shown = passages.activations(7, EXAMPLES)
        assert [one.max_value for one in shown] == [round(float(value), 4) for value in passages.values[7]]
