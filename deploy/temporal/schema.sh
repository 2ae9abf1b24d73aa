#!/bin/sh
# Makes Temporal's two databases and brings their schema to the version of this tool. May be repeated: on a database
# that is up to date it changes nothing, so it also serves for an upgrade. The address comes from the SQL_* variables.
set -eu

for database in temporal temporal_visibility; do
    temporal-sql-tool --database "$database" create-database
    temporal-sql-tool --database "$database" setup-schema --version 0.0
done
temporal-sql-tool --database temporal update-schema --schema-name postgresql/v12/temporal
temporal-sql-tool --database temporal_visibility update-schema --schema-name postgresql/v12/visibility
