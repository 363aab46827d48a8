"""As in the package: from here the function has the name of its module."""

from modelscope.hub.snapshot_download import snapshot_download as snapshot_download
