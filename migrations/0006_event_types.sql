-- Event types: a JSON Schema for each topic pattern and version, and an upcast to the next version.

create table outbox.event_types (
    id           bigint      generated always as identity primary key,
    topic        text        not null,
    version      integer     not null default 1,
    schema       jsonb       not null default 'true',
    mode         text        not null default 'reject',
    description  text,
    upcast       text,
    state_reason text,
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now(),
    -- last transaction that changed the type; relays reload by it
    changed      xid8        not null default pg_current_xact_id(),
    unique (topic, version)
);
comment on table outbox.event_types is
    'Schemas of payloads by topic pattern and version. Checked when an event is delivered.';
comment on column outbox.event_types.topic is
    'A topic pattern. The type applies to events whose topic matches and whose schema_version '
    'equals version.';
comment on column outbox.event_types.version is
    'Compared with the schema_version of an event, of which null counts as 1.';
comment on column outbox.event_types.schema is
    'A JSON Schema. true accepts every payload without reading it.';
comment on column outbox.event_types.mode is
    'reject: an event that does not fit becomes a dead letter; warn: it is delivered and counted.';
comment on column outbox.event_types.upcast is
    'A CEL expression that makes the payload of the next version. Null: no upcast.';
comment on column outbox.event_types.state_reason is
    'Why a relay cannot use the schema or the upcast. An invalid schema rejects nothing. Null: '
    'valid, or not checked yet.';

-- Refuses mistakes that the database can detect, with the field and a hint. A relay reports others
-- in state_reason.
create function outbox_internal.check_event_type() returns trigger
language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        if (new.topic, new.version, new.schema, new.mode, new.description, new.upcast)
           is not distinct from
           (old.topic, old.version, old.schema, old.mode, old.description, old.upcast) then
            return new;  -- only the state reported by a relay changed
        end if;
        new.updated_at := now();
        new.state_reason := null;  -- a relay checks the changed type
    end if;
    new.changed := pg_current_xact_id();

    if new.topic is null or not outbox_internal.topic_pattern_is_valid(new.topic) then
        raise exception using errcode = '22023',
            message = format('topic: %L is not a topic pattern', new.topic),
            hint = 'Segments are separated by dots; "*" is one segment, "**" any number, "ord*" a '
                   'prefix; a star must be the last character of its segment.';
    end if;
    if new.version is null or new.version < 1 then
        raise exception using errcode = '22023',
            message = format('version: %s is less than 1', coalesce(new.version::text, 'null')),
            hint = 'Versions are 1, 2, 3 and so on; an event without schema_version has version 1.';
    end if;
    if new.schema is null or jsonb_typeof(new.schema) not in ('object', 'boolean') then
        raise exception using errcode = '22023',
            message = format('schema: must be a JSON object, true or false, not %s',
                             coalesce(jsonb_typeof(new.schema), 'null')),
            hint = 'Write a JSON Schema such as {"type": "object", "required": ["id"]}, or true '
                   'for every payload.';
    end if;
    if octet_length(new.schema::text) > 65536 then
        raise exception using errcode = '22023', message = 'schema: must have at most 65536 bytes',
            hint = 'Remove descriptions and examples, or allow any value for parts of the payload.';
    end if;
    if new.mode is null or new.mode not in ('reject', 'warn') then
        raise exception using errcode = '22023',
            message = format('mode: %L is not a mode', new.mode),
            hint = 'Use ''reject'' (an event that does not fit becomes a dead letter) or ''warn'' '
                   '(it is delivered and counted).';
    end if;
    -- Only a relay can check CEL; `pgoutbox types add` checks it before it is saved.
    if new.upcast ~ '^[[:space:]]*$' or octet_length(new.upcast) > 8192 then
        raise exception using errcode = '22023', message = 'upcast: must have 1 to 8192 bytes',
            hint = 'Write a CEL expression such as {"id": payload.id, "currency": "EUR"}, or null.';
    end if;
    return new;
end;
$$;

create trigger check_event_type before insert or update on outbox.event_types
    for each row execute function outbox_internal.check_event_type();

-- Relays follow changes as for subscriptions, except changes of state_reason, which they make
-- themselves.
create constraint trigger bump_generation
    after insert or delete or update of topic, version, schema, mode, description, upcast
    on outbox.event_types
    deferrable initially deferred for each row execute function outbox_internal.bump_generation();

create trigger ring_event_types
    after insert or delete or update of topic, version, schema, mode, description, upcast
    on outbox.event_types
    for each statement execute function outbox_internal.ring_subscriptions();

create function outbox.define_event_type(
    topic       text,
    version     integer default 1,
    schema      jsonb   default 'true',
    mode        text    default 'reject',
    description text    default null,
    upcast      text    default null
) returns bigint
language plpgsql as $$
declare
    type_id bigint;
    detail  text;
    hint    text;
begin
    begin
        insert into outbox.event_types as existing (
            topic, version, schema, mode, description, upcast)
        values (define_event_type.topic, coalesce(define_event_type.version, 1),
                coalesce(define_event_type.schema, 'true'),
                coalesce(define_event_type.mode, 'reject'),
                define_event_type.description, define_event_type.upcast)
        on conflict on constraint event_types_topic_version_key do update
           set schema = excluded.schema, mode = excluded.mode, description = excluded.description,
               upcast = excluded.upcast
         where (existing.schema, existing.mode, existing.description, existing.upcast)
               is distinct from
               (excluded.schema, excluded.mode, excluded.description, excluded.upcast)
        returning existing.id into type_id;
    exception when data_exception or integrity_constraint_violation then
        -- Raised again, an error does not show the statement above.
        get stacked diagnostics detail = pg_exception_detail, hint = pg_exception_hint;
        raise exception using errcode = sqlstate,
            message = concat_ws('. ', sqlerrm, nullif(detail, '')),
            hint = coalesce(nullif(hint, ''), 'See docs/event-types.md.');
    end;
    if type_id is null then  -- it existed already and did not change
        select existing.id into type_id from outbox.event_types as existing
         where existing.topic = define_event_type.topic
           and existing.version = coalesce(define_event_type.version, 1);
    end if;
    return type_id;
end;
$$;
comment on function outbox.define_event_type is
    'Create or change the type of a topic pattern and version. Calling it twice changes nothing. '
    'Returns the id.';

create function outbox.drop_event_type(topic text, version integer default 1) returns boolean
language plpgsql as $$
begin
    delete from outbox.event_types as existing
     where existing.topic = drop_event_type.topic
       and existing.version = drop_event_type.version;
    return found;
end;
$$;
comment on function outbox.drop_event_type is
    'Delete an event type. Its events are no longer checked. Returns whether it existed.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
