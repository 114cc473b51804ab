"""Contract tests on any registered induction method: what an author of a plug-in runs before anybody else does."""
