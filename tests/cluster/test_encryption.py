"""A Dask cluster that talks TLS alone.

Law: the certificates are made for the test, and nobody is let in without one.
"""

from __future__ import annotations

import unittest
from pathlib import Path
from typing import Any

from conveyor import Pipeline, ProcessError, Processor
from conveyor.engines.dask import DaskEngine
from tests.cluster import jobs
from tests.helpers.cluster import LoopbackCluster, on_cluster
from tests.helpers.support import TestCase


@on_cluster
class Encrypted(TestCase):
    """The broker connects by itself: it needs what the client of the caller has."""

    time_limit = 300.0

    def test_a_client_with_certificates(self) -> None:
        from distributed import Client
        from distributed.security import Security

        try:
            security = Security.temporary()
        except ImportError as error:
            # It makes certificates with `cryptography`.
            raise unittest.SkipTest(str(error)) from error
        folder = Path(self.new_folder())
        names = {"tls_ca_file": "ca.pem", "tls_scheduler_cert": "cert.pem", "tls_scheduler_key": "key.pem"}
        for attribute, name in names.items():
            (folder / name).write_text(getattr(security, attribute))
        files = [str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")]
        options = ["--tls-ca-file", files[0], "--tls-cert", files[1], "--tls-key", files[2]]
        cluster = LoopbackCluster(0, options=options)
        self.addCleanup(cluster.close)
        assert cluster.address.startswith("tls://"), cluster.address
        cluster.start(2)
        with Client(cluster.address, security=security, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            for given in (client, None):
                pipeline: Any = Pipeline(engine=DaskEngine(given)).add(Processor(jobs.doubled, workers=2))
                assert pipeline.run(range(100)) == [2 * item for item in range(100)]
        # Whoever has no certificate is not let in.
        with self.assertRaisesRegex(ProcessError, "No Dask scheduler could be reached at 'tls://"):
            Pipeline(engine="dask", address=cluster.address).add(Processor(jobs.doubled)).run([1])
