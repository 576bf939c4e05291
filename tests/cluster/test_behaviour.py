"""The behaviour suite of all engines, on a Dask cluster of three nodes.

Law: nothing is expected here that another engine does not do.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tests.engines.test_engines import Behaviour as _Behaviour
from tests.helpers.cluster import LoopbackCluster, on_cluster, why_none
from tests.helpers.support import TestCase


@on_cluster
class DaskTest(_Behaviour, TestCase):
    settings: ClassVar[dict[str, Any]] = {"engine": "dask"}
    cluster: ClassVar[LoopbackCluster]
    # Each pipeline has a broker that imports Dask: on a busy machine, some seconds.
    time_limit = 300.0

    @classmethod
    def setUpClass(cls) -> None:
        if why_none():
            # nose sets up a class of which all tests are skipped.
            return
        cls.cluster = LoopbackCluster()
        cls.settings = {**cls.settings, "address": cls.cluster.address}

    @classmethod
    def tearDownClass(cls) -> None:
        if not why_none():
            cls.cluster.close()
        super().tearDownClass()
