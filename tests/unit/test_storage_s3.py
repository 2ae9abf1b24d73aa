"""What of the S3 store needs no server."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import Mock

import pytest

from activities.store.s3 import S3Store


@pytest.mark.parametrize(
    ("prefix", "ours", "of_others"),
    [("", "files/t/file-1/content", "backups/files/large"), ("team", "team/anything", "teammate/files/large")],
)
def test_stale_uploads_of_other_programs_in_the_bucket_stay(prefix: str, ours: str, of_others: str) -> None:
    """Also where a server lists more than the prefix that it is asked for."""
    client = Mock()
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    listed = [Mock(object_name=name, upload_id="u", initiated_time=long_ago) for name in (ours, of_others)]
    client._list_multipart_uploads.return_value = Mock(uploads=listed, is_truncated=False)
    client.list_objects.return_value = iter(())
    S3Store(client, "bucket", prefix).delete_stale()
    assert [call.kwargs["object_name"] for call in client._abort_multipart_upload.call_args_list] == [ours]
