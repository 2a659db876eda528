-- The log of events. Applications write it in the transaction that writes their data.
-- Publishers pay for every index, default and check, so each has its reason beside it.

-- `outbox` is what applications and operators use, `outbox_internal` what that is made of.
create schema if not exists outbox;
create schema outbox_internal;
revoke all on schema outbox, outbox_internal from public;
comment on schema outbox_internal is 'Helpers of the schema outbox. Any version may change them.';

-- Group roles without login. If the migrating role may not create roles, they and their grants are
-- skipped; see outbox.grant_roles().
do $$
declare
    wanted text;
begin
    foreach wanted in array
        array['outbox_owner', 'outbox_publisher', 'outbox_relay', 'outbox_admin', 'outbox_monitor']
    loop
        if not exists (select from pg_catalog.pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                -- created by a concurrent migration
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then
                    raise notice
                        'role % was not created: % may not create roles; create the role and run outbox.grant_roles()',
                        wanted, current_user;
            end;
        end if;
    end loop;
end;
$$;

-- A time-ordered public id (UUID version 7). Uses the native function of PostgreSQL 18 and later.
do $$
begin
    if exists (select from pg_catalog.pg_proc
                where proname = 'uuidv7'
                  and pronamespace = 'pg_catalog'::regnamespace
                  and pronargs = 0) then
        execute 'create function outbox.new_id() returns uuid language sql volatile parallel safe '
                'as ''select pg_catalog.uuidv7()''';
    else
        -- gen_random_uuid() is version 4 (0100); overlay the first 48 bits with milliseconds, set
        -- two bits for version 7 (0111).
        execute $f$
            create function outbox.new_id() returns uuid language sql volatile parallel safe as '
                select encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                       placing substring(
                           int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                       from 1 for 6),
                       52, 1), 53, 1), ''hex'')::uuid'
        $f$;
    end if;
end;
$$;

-- Raises the error of a value that a field refuses. Checks call it where their condition is false.
create function outbox_internal.refuse(field text, value anyelement) returns boolean
language plpgsql as $$
declare
    letters text := format('has %s characters', length(value::text));
    shown   text := left(value::text, 300);
    problem text;
    hint    text;
begin
    case field
        when 'topic' then
            -- Topics of operators' events: only for the owner of the outbox.
            if starts_with(value::text, 'outbox.') then
                if length(value::text) <= 255
                   and value::text ~ '^[^.*[:cntrl:] ]+([.][^.*[:cntrl:] ]+)*$'
                   and pg_has_role((select relation.relowner from pg_class as relation
                                     where relation.oid = 'outbox.events'::regclass), 'usage') then
                    return true;
                end if;
                raise exception using errcode = '23514',
                    message = format('topic: %L begins with outbox., which is reserved', shown),
                    hint = 'The outbox publishes its own events there. Use another first segment.';
            end if;
            problem := format('%L is not a topic', shown);
            hint := 'Use segments separated by dots, without blanks, stars and control characters, '
                    'at most 255 characters, such as shop.orders.create.';
        when 'payload' then
            problem := format('has %s bytes as text', octet_length(value::text));
            hint := 'Use at most 262144 (256 KiB). Keep what is larger elsewhere and publish where '
                    'it is.';
        when 'headers' then
            problem := format('%s cannot be sent', shown);
            hint := 'Use an object of strings without control characters, at most 16 KiB. Names '
                    'have 1 to 64 lower-case letters, digits, _ and -, such as '
                    '{"traceparent": "00-..."}.';
        when 'organization' then
            problem := letters;
            hint := 'Use 1 to 255 characters, or null.';
        when 'priority' then
            problem := format('%s is not between 0 and 1000', shown);
            hint := 'Use 0 where nothing is urgent.';
        when 'deliver_after' then
            problem := format('%s is not between the years 2000 and 2200', shown);
            hint := 'Use null for at once.';
        else
            problem := letters;
            hint := format('Use at most %s characters.',
                           case field when 'key' then 512 else 255 end);
    end case;
    raise exception using errcode = '23514', message = concat_ws(': ', field, problem), hint = hint;
end;
$$;

-- Types of the fields of an event. Domains instead of table checks: PostgreSQL parses and plans a
-- table's checks for each statement, but caches those of domains. Eight table checks halve a
-- publisher's rate.
create domain outbox.topic as text
    constraint topic_must_be_dotted_segments_without_stars_up_to_255_letters
    check (length(value) <= 255 and value ~ '^[^.*[:cntrl:] ]+([.][^.*[:cntrl:] ]+)*$'
           and not starts_with(value, 'outbox.')
           or value is null or outbox_internal.refuse('topic', value));
create domain outbox.key as text
    constraint key_must_be_at_most_512_characters
    check (value is null or length(value) <= 512 or outbox_internal.refuse('key', value));
create domain outbox.payload as jsonb
    -- As text, which is what is sent: twelve bytes such as 1e131071 are 131 KB of text. It costs an
    -- insert a microsecond.
    constraint payload_must_be_at_most_256_kib
    check (octet_length(value::text) <= 262144
           or value is null or outbox_internal.refuse('payload', value));
-- Whether headers can be sent as HTTP headers: names are lower-case tokens, values strings without
-- control characters.
create function outbox_internal.headers_are_valid(headers jsonb) returns boolean
language sql immutable parallel safe as $$
    select jsonb_typeof(headers) = 'object'
       and octet_length(headers::text) <= 16384
       and not exists (
               select from jsonb_each(case when jsonb_typeof(headers) = 'object' then headers
                                           else '{}' end) as header (name, value)
                where header.name !~ '^[a-z0-9][a-z0-9_-]{0,63}$'
                   or jsonb_typeof(header.value) <> 'string'
                   or header.value #>> '{}' ~ '[[:cntrl:]]')
$$;
create domain outbox.headers as jsonb
    constraint headers_must_be_an_object_of_strings_without_control_characters
    check (value = '{}' or value is null or outbox_internal.headers_are_valid(value)
           or outbox_internal.refuse('headers', value));
create domain outbox.organization as text
    constraint organization_must_be_1_to_255_characters
    check (value is null or length(value) between 1 and 255
           or outbox_internal.refuse('organization', value));
create domain outbox.source as text
    constraint source_must_be_at_most_255_characters
    check (value is null or length(value) <= 255 or outbox_internal.refuse('source', value));
create domain outbox.user_id as text
    constraint user_id_must_be_at_most_255_characters
    check (value is null or length(value) <= 255 or outbox_internal.refuse('user_id', value));
create domain outbox.priority as integer
    constraint priority_must_be_between_0_and_1000
    check (value between 0 and 1000 or value is null or outbox_internal.refuse('priority', value));
create domain outbox.instant as timestamptz
    constraint instant_must_be_between_the_years_2000_and_2200
    check (value is null
           or value >= '2000-01-01 00:00:00+00' and value < '2200-01-01 00:00:00+00'
           or outbox_internal.refuse('deliver_after', value));

create table outbox.events (
    -- The first column, so that it is assigned before `position`: an event of a transaction that
    -- began after a snapshot then has a position above the sequence's value read before that
    -- snapshot (see sql/relay/advance_cursor.sql).
    xid            xid8        not null default pg_current_xact_id(),
    position       bigint      not null generated always as identity,
    created_at     timestamptz not null default clock_timestamp(),
    id             uuid        not null default outbox.new_id(),
    topic          outbox.topic not null,
    key            outbox.key,
    payload        outbox.payload not null,
    headers        outbox.headers not null default '{}',
    organization   outbox.organization,
    source         outbox.source,
    user_id        outbox.user_id,
    priority       outbox.priority not null default 0,
    deliver_after  outbox.instant,
    schema_version integer
) partition by range (created_at);

comment on table outbox.events is
    'The log of events. Insert (topic, payload) in the transaction that writes the data. Never '
    'updated. Partitioned by created_at.';

-- An insert must not fail because a partition is missing.
create table outbox.events_default partition of outbox.events default;

-- so that a publication for all tables forbids no delete
alter table outbox.events replica identity full;
alter table outbox.events_default replica identity full;

-- new events, by the cursor's snapshot
create index events_xid_position on outbox.events (xid, position);
-- pages of a large window; events of claimed deliveries
create index events_position on outbox.events (position);
-- an event by its id, which contains the time
create index events_created_at on outbox.events using brin (created_at);

-- Ids given by publishers: the same id twice is one event. Only publishers that give an id write
-- this table.
create table outbox.event_ids (
    id         uuid primary key,
    created_at timestamptz not null default clock_timestamp()
);
comment on table outbox.event_ids is
    'Ids given to outbox.publish(id => ...). Publishing the same id twice is one event.';

-- Notifies relays, but only while they sleep. NOTIFY locks the whole database at commit, so a
-- publisher first tries a shared lock that only a sleeping relay holds exclusively. It never waits.
-- `set outbox.doorbell = 'off'` disables it for transactions that will be prepared: NOTIFY forbids
-- PREPARE TRANSACTION.
create function outbox_internal.ring_doorbell() returns trigger
language plpgsql as $$
begin
    if current_setting('outbox.doorbell', true) is not distinct from 'off' then
        return null;
    end if;
    if not pg_catalog.pg_try_advisory_xact_lock_shared(7411001) then
        -- A full notification queue must not fail the commit. The relay's poll finds the event.
        if pg_catalog.pg_notification_queue_usage() <= 0.5 then
            perform pg_catalog.pg_notify('outbox_doorbell', '');
        end if;
    end if;
    return null;
end;
$$;

create trigger ring_doorbell after insert on outbox.events
    for each statement execute function outbox_internal.ring_doorbell();

create function outbox.publish(
    topic          text,
    payload        jsonb,
    key            text        default null,
    headers        jsonb       default '{}',
    organization   text        default null,
    id             uuid        default null,
    priority       integer     default 0,
    deliver_after  timestamptz default null,
    source         text        default null,
    user_id        text        default null,
    schema_version integer     default null
) returns uuid
language plpgsql as $$
declare
    event_id     uuid                := publish.id;
    -- Checked here, an error does not show the statement below.
    its_topic    outbox.topic        := publish.topic;
    its_payload  outbox.payload      := publish.payload;
    its_key      outbox.key          := publish.key;
    its_headers  outbox.headers      := coalesce(publish.headers, '{}');
    tenant       outbox.organization := publish.organization;
    its_priority outbox.priority     := coalesce(publish.priority, 0);
    due_after    outbox.instant      := publish.deliver_after;
    its_source   outbox.source       := publish.source;
    its_user     outbox.user_id      := publish.user_id;
begin
    if its_topic is null or its_payload is null then
        raise exception using errcode = '23502',
            message = case when its_topic is null then 'topic: is null' else 'payload: is null' end,
            hint = case when its_topic is null
                        then 'Name what happened, such as shop.orders.create.'
                        else 'The null of JSON is ''null''::jsonb.' end;
    end if;
    if event_id is null then
        event_id := outbox.new_id();
    else
        insert into outbox.event_ids (id) values (event_id) on conflict do nothing;
        if not found then
            return event_id;
        end if;
    end if;
    insert into outbox.events (
        id, topic, key, payload, headers, organization, priority, deliver_after, source, user_id,
        schema_version)
    values (
        event_id, its_topic, its_key, its_payload, its_headers, tenant, its_priority, due_after,
        its_source, its_user, publish.schema_version);
    return event_id;
end;
$$;
comment on function outbox.publish is
    'Publish one event in the current transaction. Returns its id. The same id twice is one event.';

-- Runs as its owner, because publishers may not read the log.
create function outbox.published(topic text default null) returns setof outbox.events
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.check_topic_pattern(published.topic);
    return query
        select event.*
          from outbox.events as event
         where event.xid = pg_current_xact_id_if_assigned()
           and (published.topic is null or outbox.topic_matches(published.topic, event.topic))
         order by event.position;
end;
$$;
comment on function outbox.published is
    'The events that the current transaction has published so far, in the order of publishing, of '
    'topics that match the pattern. For tests of applications.';

comment on function outbox.new_id is
    'An id for an event, a UUID of version 7, to know the id before publishing.';
