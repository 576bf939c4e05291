"""Packaging. Everything declarative is in setup.cfg; here is what it cannot say: what else the source archive holds."""

from setuptools import setup
from setuptools.command.sdist import sdist


class SourceArchive(sdist):
    """A source archive that can run its own tests: with them, and all that they read."""

    def make_distribution(self) -> None:
        """Add what is not part of the package to the files, then pack them."""
        for folder in ("tests", "examples", "benchmarks", "docs"):
            self.filelist.graft(folder)
        for file in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "Makefile"):
            self.filelist.include(file)
        for pattern in ("*.py[cod]", ".*", "*~"):
            self.filelist.global_exclude(pattern)
        super().make_distribution()


setup(cmdclass={"sdist": SourceArchive})
