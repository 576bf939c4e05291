"""The behaviour suite of all engines, on a Dask cluster of three nodes.

Law: nothing is expected here that another engine does not do.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tests.engines.test_engines import Behaviour as _Behaviour
from tests.helpers.cluster import ClusterTestCase, on_cluster, why_none


@on_cluster
class DaskTest(_Behaviour, ClusterTestCase):
    settings: ClassVar[dict[str, Any]] = {"engine": "dask"}

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        if not why_none():
            cls.settings = {**cls.settings, "address": cls.cluster.address}
