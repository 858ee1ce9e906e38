"""The tables, triggers and rights of an audit log in PostgreSQL, and the queries that find them again (`postgres`)."""

from __future__ import annotations

import re

from ...errors import InputError

DEFAULT_SCHEMA = "foedus_log"
NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)
TABLES = {
    "log": (("origin", "text", True),),
    "entry": (("seq", "bigint", True), ("body", "bytea", True)),
    "node": (("level", "smallint", True), ("idx", "bigint", True), ("hash", "bytea", True)),
    "payload": (("commitment", "bytea", True), ("key_id", "text", True), ("sealed", "bytea", True)),
}
KEYS = {
    "entry": "PRIMARY KEY (seq)",
    "node": "PRIMARY KEY (level, idx), CHECK (length(hash) = 32)",
    "payload": "PRIMARY KEY (commitment), CHECK (length(commitment) = 32)",
}
# Bodies of the trigger functions; `examine` compares them, so a changed one is seen.
_REFUSE = "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END"
_NEXT = (
    "BEGIN IF NEW.seq <> (SELECT coalesce(max(seq) + 1, 0) FROM {schema}.entry) THEN "
    "RAISE EXCEPTION 'entry is append-only' USING ERRCODE = 'integrity_constraint_violation'; "
    "END IF; RETURN NEW; END"
)
_ONE = (
    "BEGIN IF EXISTS (SELECT 1 FROM {schema}.log) THEN "
    "RAISE EXCEPTION 'log is append-only' USING ERRCODE = 'integrity_constraint_violation'; "
    "END IF; RETURN NEW; END"
)
FUNCTIONS = {"refuse": _REFUSE, "next_entry": _NEXT, "one_log": _ONE}
_INSERTS = {"entry": "next_entry", "log": "one_log"}


def triggers() -> dict[tuple[str, str], tuple[str, str]]:
    """``(table, trigger) -> (when, function)``."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for table in TABLES:
        found[table, f"{table}_change"] = ("BEFORE DELETE OR UPDATE ON {} FOR EACH ROW", "refuse")
        found[table, f"{table}_truncate"] = ("BEFORE TRUNCATE ON {} FOR EACH STATEMENT", "refuse")
        if table in _INSERTS:
            found[table, f"{table}_insert"] = ("BEFORE INSERT ON {} FOR EACH ROW", _INSERTS[table])
    return found


def ddl(role: str, schema: str = DEFAULT_SCHEMA) -> str:
    """The statements that make an empty log, for its owner to run; `role` (which exists) is who will write to it.

    Raises:
        InputError: a name that is not lower-case letters, digits and underscores.
    """
    for name in (role, schema):
        if not NAME.fullmatch(name):
            raise InputError(
                f"{name!r}: a role or schema is named by lower-case letters, digits and underscores"
            )
    lines = ["BEGIN;", f"CREATE SCHEMA {schema};"]
    for table, columns in TABLES.items():
        parts = [f"{name} {kind} NOT NULL" for name, kind, _ in columns]
        parts += [KEYS[table]] if table in KEYS else []
        lines.append(f"CREATE TABLE {schema}.{table} ({', '.join(parts)});")
    lines.append(f"CREATE INDEX payload_key ON {schema}.payload (key_id);")
    for name, body in FUNCTIONS.items():
        lines.append(
            f"CREATE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql AS "
            f"$${body.format(schema=schema)}$$;"
        )
    for (table, trigger), (when, function) in triggers().items():
        lines += [
            f"CREATE TRIGGER {trigger} {when.format(f'{schema}.{table}')} EXECUTE FUNCTION {schema}.{function}();",
            f"ALTER TABLE {schema}.{table} ENABLE ALWAYS TRIGGER {trigger};",
        ]
    lines += [
        f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC;",
        f"GRANT USAGE ON SCHEMA {schema} TO {role};",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO {role};",
        "COMMIT;",
    ]
    return "\n".join(lines) + "\n"


COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.relname, a.attnum"""
TRIGGERS = r"""
SELECT c.relname, t.tgname, t.tgenabled,
       regexp_replace(regexp_replace(pg_get_triggerdef(t.oid), '^CREATE TRIGGER \S+ ', ''), ' EXECUTE .*$', ''), p.proname
FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE n.nspname = %s AND NOT t.tgisinternal"""
BODIES = """
SELECT p.proname, p.prosrc FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %s"""
PRIMARY = """
SELECT c.relname, pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND k.contype = 'p'"""
ROLE = """
SELECT current_user,
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
       EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = %s AND (pg_has_role(c.relowner, 'MEMBER') OR pg_has_role(n.nspowner, 'MEMBER'))),
       EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = %s AND c.relkind = 'r' AND has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE, TRIGGER'))
"""
