-- The schemas outbox and outbox_internal after all migrations, as pg_dump shows them: to be read.
-- A test keeps it true; after a change of migrations/: UPDATE_SCHEMA=1 cargo test --test it schema_sql

CREATE SCHEMA outbox;

CREATE SCHEMA outbox_internal;

COMMENT ON SCHEMA outbox_internal IS 'Helpers of the schema outbox. Any version may change them.';

CREATE FUNCTION outbox_internal.headers_are_valid(headers jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
    select jsonb_typeof(headers) = 'object'
       and octet_length(headers::text) <= 16384
       and not exists (
               select from jsonb_each(case when jsonb_typeof(headers) = 'object' then headers
                                           else '{}' end) as header (name, value)
                where header.name !~ '^[a-z0-9][a-z0-9_-]{0,63}$'
                   or jsonb_typeof(header.value) <> 'string'
                   or header.value #>> '{}' ~ '[[:cntrl:]]')
$_$;

CREATE FUNCTION outbox_internal.refuse(field text, value anyelement) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
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
$_$;

CREATE DOMAIN outbox.headers AS jsonb
	CONSTRAINT headers_must_be_an_object_of_strings_without_control_characters CHECK (((VALUE = '{}'::jsonb) OR (VALUE IS NULL) OR outbox_internal.headers_are_valid(VALUE) OR outbox_internal.refuse('headers'::text, VALUE)));

CREATE DOMAIN outbox.instant AS timestamp with time zone
	CONSTRAINT instant_must_be_between_the_years_2000_and_2200 CHECK (((VALUE IS NULL) OR ((VALUE >= '2000-01-01 00:00:00+00'::timestamp with time zone) AND (VALUE < '2200-01-01 00:00:00+00'::timestamp with time zone)) OR outbox_internal.refuse('deliver_after'::text, VALUE)));

CREATE DOMAIN outbox.key AS text
	CONSTRAINT key_must_be_at_most_512_characters CHECK (((VALUE IS NULL) OR (length(VALUE) <= 512) OR outbox_internal.refuse('key'::text, VALUE)));

CREATE DOMAIN outbox.organization AS text
	CONSTRAINT organization_must_be_1_to_255_characters CHECK (((VALUE IS NULL) OR ((length(VALUE) >= 1) AND (length(VALUE) <= 255)) OR outbox_internal.refuse('organization'::text, VALUE)));

CREATE DOMAIN outbox.payload AS jsonb
	CONSTRAINT payload_must_be_at_most_256_kib CHECK (((octet_length((VALUE)::text) <= 262144) OR (VALUE IS NULL) OR outbox_internal.refuse('payload'::text, VALUE)));

CREATE DOMAIN outbox.priority AS integer
	CONSTRAINT priority_must_be_between_0_and_1000 CHECK ((((VALUE >= 0) AND (VALUE <= 1000)) OR (VALUE IS NULL) OR outbox_internal.refuse('priority'::text, VALUE)));

CREATE DOMAIN outbox.source AS text
	CONSTRAINT source_must_be_at_most_255_characters CHECK (((VALUE IS NULL) OR (length(VALUE) <= 255) OR outbox_internal.refuse('source'::text, VALUE)));

CREATE DOMAIN outbox.topic AS text
	CONSTRAINT topic_must_be_dotted_segments_without_stars_up_to_255_letters CHECK ((((length(VALUE) <= 255) AND (VALUE ~ '^[^.*[:cntrl:] ]+([.][^.*[:cntrl:] ]+)*$'::text) AND (NOT starts_with(VALUE, 'outbox.'::text))) OR (VALUE IS NULL) OR outbox_internal.refuse('topic'::text, VALUE)));

CREATE DOMAIN outbox.user_id AS text
	CONSTRAINT user_id_must_be_at_most_255_characters CHECK (((VALUE IS NULL) OR (length(VALUE) <= 255) OR outbox_internal.refuse('user_id'::text, VALUE)));

CREATE FUNCTION outbox.adopt(keep_pending boolean, environment text DEFAULT NULL::text) RETURNS TABLE(events bigint, deliveries bigint)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
#variable_conflict use_variable
declare
    was         outbox.cursor;
    kept        outbox.identity;
    is_restored boolean;
    this        xid8 := pg_current_xact_id();
    pending     bigint;
    owed        bigint;
    is_ours     boolean;                  -- by what the server says of itself
    first_xid   constant bigint := 3;     -- of what is routed: older than every transaction
begin
    perform set_config('lock_timeout', '10s', true);
    lock table outbox.identity, outbox.cursor, outbox.starts, outbox.replays, outbox.pages,
               outbox.backlog, outbox.deliveries, outbox.events in share row exclusive mode;
    select * into strict was from outbox.cursor as one order by one.step desc limit 1;
    select identity.* into strict kept from outbox.identity as identity;
    select not outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
           or was.low > (select sequence.last_value from outbox.events_position_seq as sequence)
           or pg_snapshot_xmax(was.settled) > pg_snapshot_xmax(pg_current_snapshot())
      into strict is_restored
      from outbox.identity as identity;

    select not is_restored and kept.set_back is null
           and coalesce(kept.system_identifier = here.system_identifier
                        and kept.database_oid = here.database_oid, true)
      into strict is_ours
      from outbox.here as here;

    if is_ours and kept.environment is not distinct from coalesce(adopt.environment,
                                                                  kept.environment) then
        raise exception using errcode = '22023',
            message = 'there is nothing to adopt: the outbox belongs to this database';
    elsif is_ours and exists (select from outbox.relays as relay
                               where relay.seen_at > now() - interval '30 seconds') then
        raise exception using errcode = '22023',
            message = format('environment: relays of %L run in this database; as %L they would '
                             'send nothing', kept.environment, adopt.environment),
            hint = 'Use the configuration of the relays. To rename the environment, stop them and '
                   'wait 30 s.';
    end if;
    if is_restored then
        update outbox.events as event
           set xid = case when not (pg_visible_in_snapshot(event.xid, was.settled)
                                    or was.window_end is not null
                                       and event.position <= was.page_after
                                       and pg_visible_in_snapshot(event.xid, was.window_end))
                            -- it was published here, after the restore
                            or outbox_internal.is_written_by(event.xmin, event.xid)
                            or event.position > greatest(was.low + 1, was.page_after)
                          then this
                          else (first_xid
                                + (select count(*)
                                     from outbox.starts as start
                                    where start.settled is not null
                                      and not pg_visible_in_snapshot(event.xid, start.settled)
                                      and not coalesce(
                                              event.position <= start.page_after
                                              and pg_visible_in_snapshot(event.xid,
                                                                         start.window_end),
                                              false)))::text::xid8
                          end;
        update outbox.starts as start
           set settled = format('%1$s:%1$s:', first_xid + ranked.number)::pg_snapshot,
               window_end = null, page_after = null
          from (select one.subscription_id,
                       row_number() over (order by pg_snapshot_xmax(one.settled),
                                                   one.page_after nulls first) as number
                  from outbox.starts as one
                 where one.settled is not null) as ranked
         where start.subscription_id = ranked.subscription_id;
        -- What is routed by now; of that, what lies up to `until_position`.
        update outbox.replays as replay
           set settled = format('%1$s:%1$s:', first_xid + 1
                                              + (select count(*) from outbox.starts))::pg_snapshot,
               window_end = null, page_after = null;
        perform setval('outbox.events_position_seq',
                       greatest(sequence.last_value, was.low + 1,
                                (select max(event.position) from outbox.events as event)))
           from outbox.events_position_seq as sequence;
        select count(*) into strict pending from outbox.events as event where event.xid = this;
        -- Relays reload what was changed by a transaction that they have not seen.
        update outbox.subscriptions as subscription set changed = this
         where subscription.changed > this;
        update outbox.event_types as type set changed = this where type.changed > this;
        delete from outbox.beginnings;  -- their transaction ids were those of the original
        update outbox.forgotten set xid = null;  -- and tokens from there are not taken here
        delete from outbox.retention_marks;
    else
        select count(*) into strict pending
          from outbox.events as event
         where event.xid >= pg_snapshot_xmin(was.settled)
           and not pg_visible_in_snapshot(event.xid, was.settled)
           and (was.window_end is null or event.position > was.page_after
                or not pg_visible_in_snapshot(event.xid, was.window_end));
    end if;

    select coalesce(sum(part.owed), 0)::bigint into strict owed
      from (select count(*) as owed from outbox.deliveries
            union all
            select sum(outbox_internal.count_positions(backlog.positions))
              from outbox.backlog as backlog
            union all
            select count(*)
              from outbox.pages as page
             cross join lateral outbox_internal.left_of(page)) as part;
    if keep_pending then
        update outbox.pages set due_at = clock_timestamp(), lease_token = gen_random_uuid();
        update outbox.deliveries set due_at = clock_timestamp(), lease_token = null
         where lease_token is not null;
    else
        update outbox.replays as replay
           set state = 'cancelled', ended_at = clock_timestamp(),
               queued = replay.queued - (select count(*) from outbox.deliveries as delivery
                                          where delivery.replay_id = replay.id)
         where replay.state in ('running', 'paused');
        delete from outbox.pages;
        delete from outbox.backlog;
        delete from outbox.deliveries;
        delete from outbox.starts;
        delete from outbox.parked_keys;
        delete from outbox.routed_early;
        update outbox.events as event set xid = first_xid::text::xid8 where event.xid = this;
    end if;
    if is_restored or not keep_pending then
        -- Transactions that are open have published nothing yet, and may.
        update outbox.cursor as cursor
           set step = cursor.step + 1,
               settled = (select format('%s:%s:%s', coalesce(min(open.xid::text::bigint),
                                                             this::text::bigint), this,
                                        string_agg(open.xid::text, ',' order by open.xid))
                            from pg_snapshot_xip(pg_current_snapshot()) as open (xid)
                           where open.xid < this)::pg_snapshot,
               low = (select sequence.last_value - 1
                        from outbox.events_position_seq as sequence),
               low_xid = this, window_end = null, window_low = null, window_low_xid = null,
               page_after = null, page_until = null;
    end if;
    delete from outbox.order_leases;
    delete from outbox.relay_subscriptions;
    delete from outbox.subscription_health;
    delete from outbox.relays;
    delete from outbox.gateways;
    update outbox.identity as identity
       set system_identifier = here.system_identifier, database_oid = here.database_oid,
           timeline = here.timeline, set_back = null,
           environment = coalesce(adopt.environment, identity.environment)
      from outbox.here as here;
    if not (select outbox_internal.is_written_by(identity.xmin, identity.recorded_by)
              from outbox.identity as identity) then
        raise exception 'outbox.adopt cannot be called inside a savepoint or an exception block';
    end if;
    perform outbox_internal.record_audit(
                'adopted', null,
                jsonb_build_object('keep_pending', keep_pending,
                                   'environment', adopt.environment, 'events', pending),
                owed);
    return query select pending, owed;
end;
$_$;

COMMENT ON FUNCTION outbox.adopt(keep_pending boolean, environment text) IS 'Take a copy of this outbox into use: a restored dump, a copied or upgraded cluster. Relays send nothing there before. keep_pending: deliver what the original had not delivered; false: deliver none of it. Returns how many events were not routed and how many deliveries waited.';

CREATE FUNCTION outbox.bridge("table" regclass, topic text DEFAULT NULL::text, key text DEFAULT NULL::text, payload text DEFAULT NULL::text, id text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    known    record;
    columns  text[];
    template text := topic;
    key_name text := key;
    id_name  text := id;
    body     text := payload;
    pieces   jsonb := '[]';
    argument text;
    part     text;
    given    record;
begin
    select c.relkind, c.relpersistence, c.relowner, n.nspname into known
      from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
     where c.oid = "table";
    if known.relkind is null or known.relkind not in ('r', 'p') or known.relpersistence = 't'
       or known.nspname in ('pg_catalog', 'information_schema', 'outbox', 'outbox_internal') then
        raise exception using errcode = '42809',
            message = format('table: %s is not a table of an application',
                             coalesce("table"::text, 'null')),
            hint = 'Name the outbox table that your application inserts into.';
    elsif not pg_has_role(known.relowner, 'usage') then
        raise exception using errcode = '42501',
            message = format('table: must be owner of table %s', "table");
    end if;
    select coalesce(array_agg(a.attname::text order by a.attnum), '{}') into columns
      from pg_attribute as a where a.attrelid = "table" and a.attnum > 0 and not a.attisdropped;

    -- The columns of Debezium's outbox event router.
    if columns @> '{aggregatetype,aggregateid,type,payload}' then
        template := coalesce(template, '{aggregatetype}.{type}');
        key_name := coalesce(key_name, 'aggregateid');
    end if;
    if template is null then
        raise exception using errcode = '22023',
            message = format('topic: is needed for table %s', "table"),
            hint = 'Write a topic with the names of columns in braces, such as topic => '
                   '''shop.{kind}''.';
    end if;
    if body is null and 'payload' = any (columns) then
        body := 'payload';
    end if;
    if id_name is null and 'id' = any (columns) then
        id_name := 'id';
    end if;
    for given in
        select one.field, one.name
          from (values ('key', key_name), ('payload', coalesce(body, '')), ('id', id_name))
               as one (field, name)
         where one.name is not null and one.name <> all (columns)
    loop
        raise exception using errcode = '42703',
            message = case when given.name = '' then 'payload: is needed'
                           else format('%s: table %s has no column %L', given.field, "table",
                                       given.name) end,
            hint = format('Its columns are %s.', array_to_string(columns, ', '));
    end loop;

    foreach part in array regexp_split_to_array(template, '(?=[{])|(?<=[}])') loop
        if part ~ '^[{].*[}]$' then
            part := substr(part, 2, length(part) - 2);
            if part <> all (columns) then
                raise exception using errcode = '42703',
                    message = format('topic: table %s has no column %L', "table", part),
                    hint = format('Its columns are %s.', array_to_string(columns, ', '));
            end if;
            pieces := pieces || jsonb_build_object('column', part);
        elsif part <> '' then
            pieces := pieces || jsonb_build_object('text', part);
        end if;
    end loop;
    if regexp_replace(template, '[{][^{}]*[}]', 'x', 'g')
       !~ '^[^.*{}[:cntrl:] ]+([.][^.*{}[:cntrl:] ]+)*$' then
        raise exception using errcode = '22023',
            message = format('topic: %L is not a topic', template),
            hint = 'Use segments separated by dots, without blanks and stars, and names of columns '
                   'in braces, such as shop.{kind}.';
    end if;

    argument := jsonb_strip_nulls(jsonb_build_object(
        'template', template, 'topic', pieces, 'key', key_name, 'payload', body,
        'id', id_name))::text;
    if exists (select from pg_trigger as t
                where t.tgrelid = "table"
                  and t.tgname = 'outbox_bridge'
                  and t.tgargs = convert_to(argument, getdatabaseencoding()) || decode('00', 'hex'))
    then
        return template;
    end if;
    if exists (select from pg_trigger as t
                where t.tgrelid = "table" and t.tgname = 'outbox_bridge') then
        execute format('drop trigger outbox_bridge on %s', "table");
    end if;
    execute format('create trigger outbox_bridge after insert on %s '
                   'referencing new table as outbox_after for each statement '
                   'execute function outbox_internal.bridge_rows(%L)',
                   "table", argument);
    return template;
end;
$_$;

COMMENT ON FUNCTION outbox.bridge("table" regclass, topic text, key text, payload text, id text) IS 'Publish each row that is inserted into an outbox table of your own. topic: text with names of columns in braces. key, payload, id: names of columns. The columns of Debezium are known. Calling it twice changes nothing. outbox.release ends it. For the owner of the table who is also a member of outbox_publisher or outbox_admin.';

CREATE FUNCTION outbox.cancel(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, event uuid DEFAULT NULL::uuid, error_like text DEFAULT NULL::text, max_rows integer DEFAULT 1000, dead_letters boolean DEFAULT false) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    cancelled bigint;
    ids       bigint[];
    keys      text[];
    keep      boolean := coalesce(cancel.dead_letters, false);
begin
    with taken as materialized (
        select one.*
          from outbox_internal.take_waiting(cancel.subscription, cancel.topic, cancel.event,
                                   cancel.error_like, cancel.max_rows, false) as one
    ),
    kept as (
        insert into outbox.dead_letters (
            subscription_id, subscription, reason, status, answer, attempts, event_id, position,
            created_at, topic, key, payload, headers, organization, source, user_id, priority,
            schema_version, replay_id)
        select taken.subscription_id, taken.subscription, 'cancelled', taken.status, taken.answer,
               taken.attempts, event.id, taken.position, taken.created_at,
               coalesce(event.topic, 'unknown'), event.key, coalesce(event.payload, 'null'),
               coalesce(event.headers, '{}'), event.organization, event.source, event.user_id,
               coalesce(event.priority, 0), event.schema_version, taken.replay_id
          from taken
          left join outbox.events as event  -- a deleted event leaves a dead letter too
            on event.position = taken.position
           and event.created_at = taken.created_at
         where keep
    ),
    -- A dead letter counts as failed.
    left_out as (
        update outbox.replays as replay
           set queued = replay.queued - (select count(*) from taken
                                          where taken.replay_id = replay.id)
         where not keep
           and replay.id in (select taken.replay_id from taken)
    )
    select count(*), array_agg(taken.subscription_id) filter (where taken.ordered_key is not null),
           array_agg(taken.ordered_key) filter (where taken.ordered_key is not null)
      into cancelled, ids, keys
      from taken;
    if outbox_internal.promote_keys(ids, keys) > 0
       and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    if cancelled > 0 then
        perform outbox_internal.record_audit(
                    'cancelled', cancel.subscription,
                    jsonb_build_object('topic', cancel.topic, 'event', cancel.event,
                                       'error_like', cancel.error_like,
                                       'max_rows', cancel.max_rows, 'dead_letters', keep),
                    cancelled);
    end if;
    return cancelled;
end;
$$;

COMMENT ON FUNCTION outbox.cancel(subscription text, topic text, event uuid, error_like text, max_rows integer, dead_letters boolean) IS 'Remove matching deliveries that wait: they are never sent. With dead_letters => true each leaves a dead letter, which can be redriven. What a relay holds is not touched. Returns how many; call again while it returns max_rows.';

CREATE FUNCTION outbox.cancel_replay(id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    removed bigint;
begin
    perform outbox_internal.check_replay(cancel_replay.id);
    update outbox.replays as one
       set state = 'cancelled', ended_at = clock_timestamp()
     where one.id = cancel_replay.id and one.state in ('running', 'paused');
    if not found then
        return false;
    end if;
    delete from outbox.deliveries as delivery
     where delivery.id in (select free.id
                             from outbox.deliveries as free
                            where free.replay_id = cancel_replay.id
                              and (free.lease_token is null or free.due_at <= now())
                              for update skip locked);
    get diagnostics removed = row_count;
    update outbox.replays as one set queued = one.queued - removed
     where one.id = cancel_replay.id;
    perform outbox_internal.audit_replay('replay cancelled', cancel_replay.id, removed);
    return true;
end;
$$;

COMMENT ON FUNCTION outbox.cancel_replay(id bigint) IS 'End a replay: what waits of it is never sent. What a relay is sending now may still arrive. Returns whether this changed anything.';

CREATE FUNCTION outbox.capture("table" regclass, topic text DEFAULT NULL::text, operations text[] DEFAULT '{insert,update,delete}'::text[], columns text[] DEFAULT NULL::text[], exclude text[] DEFAULT NULL::text[], condition text DEFAULT NULL::text, key text DEFAULT NULL::text, diff boolean DEFAULT true) RETURNS text
    LANGUAGE plpgsql
    AS $$
begin
    return outbox_internal.attach_capture("table", topic, operations, columns, exclude, condition,
                                          key, diff, pg_catalog.current_setting('search_path'));
end;
$$;

COMMENT ON FUNCTION outbox.capture("table" regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean) IS 'Publish each change of a table as an event: <topic>.create, .update or .delete, by default schema.table.create and so on. Returns <topic>. Calling it twice changes nothing; other arguments replace the capture. For the owner of the table who is also a member of outbox_publisher or outbox_admin. topic: instead of schema.table. operations: insert, update, delete. columns or exclude: the columns in the payload; an update of other columns makes no event. condition: an expression about NEW and OLD, for each row. key: the columns of the event''s key, separated by commas, instead of the primary key. diff: whether an update contains the changed columns and their previous values.';

CREATE FUNCTION outbox.declare_sink(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    if exists (select from outbox.sinks as known where known.name = declare_sink.name) then
        return false;
    end if;
    insert into outbox.declared_sinks (name) values (declare_sink.name) on conflict do nothing;
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.declare_sink(name text) IS 'Let subscriptions name a sink of your own program. Relays declare theirs when they start. Returns whether it was new.';

CREATE FUNCTION outbox.define_event_type(topic text, version integer DEFAULT 1, schema jsonb DEFAULT 'true'::jsonb, mode text DEFAULT 'reject'::text, description text DEFAULT NULL::text, upcast text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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

COMMENT ON FUNCTION outbox.define_event_type(topic text, version integer, schema jsonb, mode text, description text, upcast text) IS 'Create or change the type of a topic pattern and version. Calling it twice changes nothing. Returns the id.';

CREATE FUNCTION outbox.discard(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, error_like text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, max_rows integer DEFAULT 1000, id bigint DEFAULT NULL::bigint, until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
declare
    chosen    bigint[];
    discarded bigint;
begin
    perform outbox_internal.check_max_rows(discard.max_rows);
    perform outbox_internal.check_topic_pattern(discard.topic);
    chosen := array(
               select candidate.id
                 from outbox.matching_dead_letters(
                          discard.subscription, discard.topic, discard.error_like,
                          discard.since, discard.id, discard.until) as candidate
                order by candidate.position, candidate.id
                limit max_rows);
    delete from outbox.dead_letters as letter where letter.id = any (chosen);
    get diagnostics discarded = row_count;
    if outbox_internal.unpark(chosen) > 0
       and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    if discarded > 0 then
        perform outbox_internal.record_audit(
                    'discarded', discard.subscription,
                    jsonb_build_object('topic', discard.topic, 'error_like', discard.error_like,
                                       'since', discard.since, 'until', discard.until,
                                       'max_rows', discard.max_rows, 'id', discard.id),
                    discarded);
    end if;
    return discarded;
end;
$$;

COMMENT ON FUNCTION outbox.discard(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) IS 'Delete matching dead letters permanently. Returns how many; call again while it returns max_rows.';

CREATE FUNCTION outbox.drop_event_type(topic text, version integer DEFAULT 1) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    delete from outbox.event_types as existing
     where existing.topic = drop_event_type.topic
       and existing.version = drop_event_type.version;
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.drop_event_type(topic text, version integer) IS 'Delete an event type. Its events are no longer checked. Returns whether it existed.';

CREATE FUNCTION outbox.explain(event uuid) RETURNS TABLE(subscription text, status text, reason text, waits_for text, until timestamp with time zone, attempts integer, last_attempt_at timestamp with time zone, detail jsonb)
    LANGUAGE plpgsql STABLE
    AS $$
declare
    traced outbox.events;
begin
    select one.* into traced from outbox_internal.traced_event(explain.event) as one;
    if traced.id is null then
        return query
            select null::text, 'unknown_event'::text,
                   'not committed, or removed from the log, and no dead letter has it'::text,
                   null::text, null::timestamptz, 0, null::timestamptz, '{}'::jsonb;
        return;
    end if;
    return query
        select one.subscription, one.status, one.reason, one.waits_for, one.until, one.attempts,
               one.last_attempt_at, one.detail
          from outbox_internal.explain_event(traced) as one;
end;
$$;

COMMENT ON FUNCTION outbox.explain(event uuid) IS 'Why an event was not delivered: for each subscription what became of it, or the first condition that kept it away, and what it waits for. SQL cannot evaluate filters: where only the filter is left the status is unknown; pgoutbox trace evaluates it.';

CREATE FUNCTION outbox.grant_roles() RETURNS text[]
    LANGUAGE plpgsql
    AS $$
declare
    granted text[] := '{}';
    role_exists boolean;
    grant_row record;
    writer text;
begin
    for grant_row in
        select * from (values
            ('outbox_publisher', 'usage on schema outbox, outbox_internal'),
            ('outbox_publisher',
             'insert (id, topic, key, payload, headers, organization, source, user_id, priority, '
             'deliver_after, schema_version) on outbox.events'),
            ('outbox_publisher', 'insert (id) on outbox.event_ids'),
            ('outbox_publisher',
             'execute on function outbox.publish, outbox.published, outbox.new_id'),
            ('outbox_publisher', 'execute on function outbox.wait'),
            ('outbox_publisher', 'execute on function outbox.capture, outbox.release'),
            ('outbox_publisher', 'execute on function outbox.bridge'),
            ('outbox_publisher', 'select on outbox.captures'),
            ('outbox_relay', 'usage on schema outbox, outbox_internal'),
            ('outbox_relay', 'select on all tables in schema outbox'),
            ('outbox_relay', 'select on sequence outbox.events_position_seq'),
            ('outbox_relay',
             'insert, update, delete on outbox.deliveries, outbox.pages, outbox.backlog, '
             'outbox.relays, outbox.relay_subscriptions, outbox.pauses, outbox.order_leases, '
             'outbox.parked_keys'),
            ('outbox_relay', 'insert, update, delete on outbox.gateways'),
            ('outbox_relay', 'insert, update on outbox.subscription_health'),
            ('outbox_relay', 'execute on function outbox_internal.note_backlogs'),
            ('outbox_relay', 'insert on outbox.attempts, outbox.dead_letters'),
            ('outbox_relay', 'insert on outbox.declared_sinks'),
            ('outbox_relay', 'execute on function outbox.declare_sink'),
            ('outbox_relay', 'update on outbox.cursor'),
            ('outbox_relay', 'update on outbox.identity'),
            ('outbox_relay', 'update, delete on outbox.starts'),
            ('outbox_relay', 'update (state, state_reason, owed_until) on outbox.subscriptions'),
            ('outbox_relay', 'execute on function outbox_internal.halt'),
            ('outbox_relay', 'update on outbox.replays'),
            ('outbox_relay', 'update on outbox.paces'),
            ('outbox_relay', 'insert, delete on outbox.routed_early'),
            ('outbox_relay', 'update (state_reason) on outbox.event_types'),
            ('outbox_relay', 'execute on function outbox_internal.declare_handler'),
            ('outbox_relay', 'execute on function outbox.wait, outbox.latest'),
            ('outbox_relay',
             'execute on function outbox_internal.make_partition, outbox_internal.drop_partition, '
             'outbox_internal.delete_old, outbox_internal.keep_for_ever'),
            ('outbox_admin', 'usage on schema outbox, outbox_internal'),
            ('outbox_admin', 'select on all tables in schema outbox'),
            ('outbox_admin', 'select on sequence outbox.events_position_seq'),
            ('outbox_admin',
             'insert, update, delete on outbox.subscriptions, outbox.starts, '
             'outbox.declared_sinks'),
            ('outbox_admin', 'insert, update, delete on outbox.event_types'),
            ('outbox_admin', 'insert, update, delete on outbox.organization_limits'),
            ('outbox_admin', 'execute on all functions in schema outbox, outbox_internal'),
            ('outbox_monitor', 'usage on schema outbox, outbox_internal'),
            ('outbox_monitor',
             'select on outbox.subscription_status, outbox.event_status, outbox.log_status, '
             'outbox.relays, '
             'outbox.relay_subscriptions'),
            ('outbox_monitor', 'select on outbox.identity, outbox.here, outbox.cursor'),
            ('outbox_monitor', 'select on sequence outbox.events_position_seq'),
            ('outbox_monitor', 'select on outbox.captures'),
            ('outbox_monitor', 'select on outbox.audit'),
            ('outbox_monitor', 'execute on function outbox.wait'),
            ('outbox_monitor', 'select on outbox.replay_status'),
            ('outbox_monitor', 'select on outbox.gateways, outbox.forgotten'),
            ('outbox_monitor',
             'select on outbox.retention_status, outbox.retention_periods, '
             'outbox.retention_kept')
        ) as wanted (role, privilege)
    loop
        select exists (select from pg_catalog.pg_roles where rolname = grant_row.role)
          into role_exists;
        if role_exists then
            begin
                execute format('grant %s to %I', grant_row.privilege, grant_row.role);
                granted := granted || format('grant %s to %s', grant_row.privilege, grant_row.role);
            exception
                when undefined_function or undefined_table then null;
            end;
        end if;
    end loop;
    -- What these write is the word of the functions that call them, or of relays.
    foreach writer in array array['record_audit', 'audit_replay', 'make_partition',
                                  'drop_partition', 'delete_old', 'keep_for_ever'] loop
        begin
            execute format(
                'revoke execute on function outbox_internal.%I from outbox_admin', writer);
        exception
            when undefined_function or undefined_object then null;
        end;
    end loop;
    -- What most helpers do, they do with the rights of the caller.
    for grant_row in
        select proc.oid::regprocedure as helper, wanted.role
          from pg_catalog.pg_proc as proc
         cross join unnest(array['outbox_publisher', 'outbox_relay', 'outbox_monitor'])
               as wanted (role)
          join pg_catalog.pg_roles as known on known.rolname = wanted.role
         where proc.pronamespace = 'outbox_internal'::regnamespace
           and (not proc.prosecdef or proc.proname in ('capture_changes', 'bridge_rows'))
         order by proc.proname, wanted.role
    loop
        execute format('grant execute on function %s to %I', grant_row.helper, grant_row.role);
    end loop;
    -- Captured writes run with the rights of the owner of capture_changes. As a publisher it keeps
    -- them when somebody else becomes the owner of the tables.
    for grant_row in
        select distinct pg_catalog.pg_get_userbyid(proc.proowner) as role
          from pg_catalog.pg_proc as proc
          join pg_catalog.pg_roles as owner on owner.oid = proc.proowner and not owner.rolsuper
         where proc.pronamespace = 'outbox_internal'::regnamespace
           and proc.proname = 'capture_changes'
    loop
        begin
            execute format('grant outbox_publisher to %I', grant_row.role);
        exception
            -- the role is missing, may not be granted by this one, or is the owner itself
            when undefined_object or insufficient_privilege or invalid_grant_operation then null;
        end;
    end loop;
    return granted;
end;
$$;

COMMENT ON FUNCTION outbox.grant_roles() IS 'Grant the groups outbox_publisher, outbox_relay, outbox_admin and outbox_monitor their rights. Run it after creating one of them. Returns the statements that it ran.';

CREATE FUNCTION outbox.new_id() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$
                select encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                       placing substring(
                           int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)
                       from 1 for 6),
                       52, 1), 53, 1), 'hex')::uuid$$;

COMMENT ON FUNCTION outbox.new_id() IS 'An id for an event, a UUID of version 7, to know the id before publishing.';

CREATE TABLE outbox.events (
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    "position" bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id uuid DEFAULT outbox.new_id() NOT NULL,
    topic outbox.topic NOT NULL,
    key outbox.key,
    payload outbox.payload NOT NULL,
    headers outbox.headers DEFAULT '{}'::jsonb NOT NULL,
    organization outbox.organization,
    source outbox.source,
    user_id outbox.user_id,
    priority outbox.priority DEFAULT 0 NOT NULL,
    deliver_after outbox.instant,
    schema_version integer
)
PARTITION BY RANGE (created_at);

ALTER TABLE ONLY outbox.events REPLICA IDENTITY FULL;

COMMENT ON TABLE outbox.events IS 'The log of events. Insert (topic, payload) in the transaction that writes the data. Never updated. Partitioned by created_at.';

CREATE FUNCTION outbox.latest(topics text[], since timestamp with time zone DEFAULT NULL::timestamp with time zone, organization text DEFAULT NULL::text, max_events integer DEFAULT 1000000) RETURNS SETOF outbox.events
    LANGUAGE plpgsql STABLE
    AS $$
declare
    expression  text;  -- of all patterns
    reserved    text;  -- of those that match operators' events
    pattern     text;
    looked_at   bigint;
begin
    if latest.topics is null or cardinality(latest.topics) not between 1 and 100 then
        raise exception using errcode = '22023',
            message = 'topics: must be an array of 1 to 100 topic patterns',
            hint = 'For example array[''shop.orders.*''].';
    end if;
    foreach pattern in array latest.topics loop
        if pattern is null then
            raise exception using errcode = '22023', message = 'topics: has a null',
                hint = 'For example array[''shop.orders.*''].';
        end if;
        expression := concat_ws('|', expression, outbox_internal.topic_expression(pattern));
        if starts_with(pattern, 'outbox.') then
            reserved := concat_ws('|', reserved, outbox_internal.topic_expression(pattern));
        end if;
    end loop;
    if latest.max_events is null or latest.max_events not between 1 and 100000000 then
        raise exception using errcode = '22023',
            message = format('max_events: %s is not between 1 and 100000000',
                             coalesce(latest.max_events::text, 'null'));
    end if;
    -- What is not looked at might hold the newest event of a key: that is refused, not left out.
    select count(*) into looked_at
      from (select from outbox.events as event
             where latest.since is null or event.created_at >= latest.since
             limit latest.max_events + 1) as event;
    if looked_at > latest.max_events then
        raise exception using errcode = '22023',
            message = format('max_events: the log has more than %s events to look at',
                             latest.max_events),
            hint = 'Give since, to look only at newer ones, or a larger max_events.';
    end if;
    return query
        select event.*
          from (select distinct on (one.organization, one.key) one.position, one.created_at
                  from outbox.events as one
                 where one.key is not null
                   and (latest.since is null or one.created_at >= latest.since)
                   and (latest.organization is null or one.organization = latest.organization)
                   and case when starts_with(one.topic, 'outbox.')
                            then ('.' || one.topic) ~ reserved
                            else ('.' || one.topic) ~ expression end
                 order by one.organization, one.key, one.position desc) as newest
          join outbox.events as event
            on event.position = newest.position
           and event.created_at = newest.created_at
         order by event.position;
end;
$$;

COMMENT ON FUNCTION outbox.latest(topics text[], since timestamp with time zone, organization text, max_events integer) IS 'The newest event of each key (and organization) among those whose topic matches a pattern, in the order of positions, to begin from. Events without a key are left out. Reads the log, from since on if it is given, and refuses to read more than max_events.';

CREATE FUNCTION outbox.limit_organization(organization text, rate text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    if limit_organization.rate is null then
        delete from outbox.organization_limits as limited
         where limited.organization = limit_organization.organization;
        return found;
    end if;
    insert into outbox.organization_limits as limited (organization, rate)
    values (limit_organization.organization, limit_organization.rate)
    on conflict on constraint organization_limits_pkey do update
       set rate = excluded.rate
     where limited.rate <> excluded.rate;
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.limit_organization(organization text, rate text) IS 'Limit how fast all subscriptions of an organization together are sent to, such as 100/s; without a rate: remove the limit. Returns whether something changed.';

CREATE TABLE outbox.dead_letters (
    id bigint NOT NULL,
    died_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    subscription_id bigint NOT NULL,
    subscription text NOT NULL,
    reason text NOT NULL,
    status integer,
    answer text,
    attempts integer NOT NULL,
    event_id uuid,
    "position" bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    topic text NOT NULL,
    key text,
    payload jsonb NOT NULL,
    headers jsonb NOT NULL,
    organization text,
    source text,
    user_id text,
    priority integer NOT NULL,
    schema_version integer,
    replay_id bigint
)
WITH (autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='5000');

CREATE FUNCTION outbox.matching_dead_letters(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, error_like text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, id bigint DEFAULT NULL::bigint, until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS SETOF outbox.dead_letters
    LANGUAGE sql STABLE
    AS $$
    -- A dead letter belongs to the subscription with its id, whatever that is called now.
    select letter.id, letter.died_at, letter.subscription_id,
           coalesce(target.name, letter.subscription), letter.reason, letter.status, letter.answer,
           letter.attempts, letter.event_id, letter.position, letter.created_at, letter.topic,
           letter.key, letter.payload, letter.headers, letter.organization, letter.source,
           letter.user_id, letter.priority, letter.schema_version, letter.replay_id
      from outbox.dead_letters as letter
      left join outbox.subscriptions as target on target.id = letter.subscription_id
     where (matching_dead_letters.id is null or letter.id = matching_dead_letters.id)
       and (matching_dead_letters.subscription is null
            or coalesce(target.name, letter.subscription) = matching_dead_letters.subscription)
       and outbox_internal.is_asked_for(
               letter, matching_dead_letters.topic, matching_dead_letters.error_like,
               matching_dead_letters.since, matching_dead_letters.until)
$$;

COMMENT ON FUNCTION outbox.matching_dead_letters(subscription text, topic text, error_like text, since timestamp with time zone, id bigint, until timestamp with time zone) IS 'The dead letters that outbox.redrive and outbox.discard would process with the same arguments.';

CREATE TABLE outbox.pages (
    id bigint NOT NULL,
    lease_token uuid NOT NULL,
    due_at timestamp with time zone NOT NULL,
    relay text NOT NULL,
    deaths smallint DEFAULT 0 NOT NULL,
    alone smallint DEFAULT 0 NOT NULL,
    created_from timestamp with time zone NOT NULL,
    created_until timestamp with time zone NOT NULL,
    subscriptions bigint[] NOT NULL,
    owed int8multirange[] NOT NULL,
    owed_since timestamp with time zone[] NOT NULL,
    done int4multirange DEFAULT '{}'::int4multirange NOT NULL
)
WITH (fillfactor='40', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

CREATE FUNCTION outbox_internal.left_of(page outbox.pages) RETURNS TABLE(subscription_id bigint, "position" bigint, number integer)
    LANGUAGE sql STABLE
    AS $$
    select pair.subscription_id, pair.at, pair.number
      from (select entry.subscription_id, at,
                   (row_number() over (order by entry.n, at) - 1)::integer as number
              from unnest(page.subscriptions, page.owed) with ordinality
                   as entry (subscription_id, owed, n)
             cross join lateral unnest(entry.owed) as span
             cross join lateral generate_series(lower(span), upper(span) - 1) as at) as pair
     where not page.done @> pair.number
$$;

CREATE FUNCTION outbox_internal.never() RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select timestamptz '2300-01-01Z' $$;

CREATE TABLE outbox.attempts (
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    delivery_id bigint,
    subscription_id bigint NOT NULL,
    "position" bigint NOT NULL,
    event_id uuid,
    attempt integer NOT NULL,
    duration interval NOT NULL,
    outcome text NOT NULL,
    reason text,
    status integer,
    answer text,
    ambiguous boolean DEFAULT false NOT NULL,
    stale boolean DEFAULT false NOT NULL,
    repeated boolean DEFAULT false NOT NULL,
    relay text NOT NULL
)
PARTITION BY RANGE (at);

ALTER TABLE ONLY outbox.attempts REPLICA IDENTITY FULL;

CREATE TABLE outbox.backlog (
    id bigint NOT NULL,
    subscription_id bigint NOT NULL,
    is_suspect boolean GENERATED ALWAYS AS ((deaths > 0)) STORED NOT NULL,
    deaths smallint DEFAULT 0 NOT NULL,
    alone smallint DEFAULT 0 NOT NULL,
    positions int8multirange NOT NULL,
    owed_since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    created_from timestamp with time zone NOT NULL,
    created_until timestamp with time zone NOT NULL,
    is_ordered boolean DEFAULT false NOT NULL,
    first_position bigint GENERATED ALWAYS AS (lower(positions)) STORED
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE outbox.deliveries (
    id bigint NOT NULL,
    subscription_id bigint NOT NULL,
    due_at timestamp with time zone NOT NULL,
    "position" bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    owed_since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    lease_token uuid,
    attempt integer DEFAULT 0 NOT NULL,
    unfinished integer DEFAULT 0 NOT NULL,
    repeated boolean DEFAULT false NOT NULL,
    asked boolean DEFAULT false NOT NULL,
    key text,
    replay_id bigint
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE outbox.subscriptions (
    id bigint NOT NULL,
    name text NOT NULL,
    topics text[] NOT NULL,
    sink text NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    match jsonb,
    filter text,
    transform text,
    schema_version integer,
    organization text,
    keys text[],
    ordering text DEFAULT 'none'::text NOT NULL,
    on_exhausted text DEFAULT 'skip'::text NOT NULL,
    "coalesce" text DEFAULT 'none'::text NOT NULL,
    rate text,
    retry jsonb DEFAULT '{}'::jsonb NOT NULL,
    max_in_flight integer,
    active boolean DEFAULT true NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    state_reason text,
    owed_until bigint,
    resumed_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    changed xid8 DEFAULT pg_current_xact_id() NOT NULL,
    CONSTRAINT state_is_known CHECK ((state = ANY (ARRAY['pending'::text, 'ok'::text, 'invalid'::text, 'gone'::text, 'disabled'::text])))
);

COMMENT ON TABLE outbox.subscriptions IS 'Which events are sent where; with the sink live: which channels live clients can join.';

COMMENT ON COLUMN outbox.subscriptions.match IS 'Only events whose payload contains this value: payload @> match. Null: all events.';

COMMENT ON COLUMN outbox.subscriptions.filter IS 'Only events for which this CEL expression is true. Null: all events.';

COMMENT ON COLUMN outbox.subscriptions.transform IS 'A CEL expression whose value is sent instead of the payload. Null: the payload is sent unchanged.';

COMMENT ON COLUMN outbox.subscriptions.schema_version IS 'Version of payloads to send: lower versions are upcast by event types, higher ones become dead letters. Null: payloads are sent unchanged.';

COMMENT ON COLUMN outbox.subscriptions.organization IS 'Only events of this organization. Null: events of every organization.';

COMMENT ON COLUMN outbox.subscriptions.ordering IS 'none, or key: of the events with one key at most one is in flight, in the order of positions, also while one is retried.';

COMMENT ON COLUMN outbox.subscriptions.on_exhausted IS 'With ordering = key, when an event becomes a dead letter: skip (its key goes on), park (the later events of its key wait for outbox.redrive or outbox.discard), halt (the subscription is paused).';

COMMENT ON COLUMN outbox.subscriptions."coalesce" IS 'none, or key: an event that waits is not sent when a newer one of its key waits too. Needs ordering = key.';

COMMENT ON COLUMN outbox.subscriptions.rate IS 'The most deliveries in a time, by all relays together, such as 50/s. Null: no limit.';

COMMENT ON COLUMN outbox.subscriptions.state IS 'pending (no relay has read this version of the row); ok; invalid (a relay cannot use the row, see state_reason); gone (the destination answered 410); disabled (it failed for longer than retry.disable_after).';

COMMENT ON COLUMN outbox.subscriptions.owed_until IS 'While the state is gone: what lies up to this position was committed before, and is delivered after outbox.resume().';

COMMENT ON COLUMN outbox.subscriptions.resumed_at IS 'When it was resumed or changed: pauses that the destination asked for before are over.';

CREATE VIEW outbox.waiting AS
 SELECT place.subscription_id,
    subscription.name AS subscription,
    place."position",
    event.id AS event_id,
    event.topic,
    event.key,
    event.organization,
    COALESCE(event.created_at, place.created_from) AS created_at,
    place.owed_since,
    NULLIF(place.due_at, outbox_internal.never()) AS due_at,
    place.attempts,
    last.reason,
    last.status,
    last.answer,
    place.place,
    place.id,
    place.number,
    place.unfinished,
    place.asked,
    place.ordered_key,
    place.replay_id,
    place.repeated
   FROM (((( SELECT delivery.subscription_id,
            delivery."position",
            delivery.created_at AS created_from,
            delivery.created_at AS created_until,
            delivery.owed_since,
            delivery.due_at,
            delivery.attempt AS attempts,
            'delivery'::text AS place,
            delivery.id,
            NULL::integer AS number,
            (delivery.unfinished + ((delivery.lease_token IS NOT NULL))::integer) AS unfinished,
            delivery.asked,
            delivery.key AS ordered_key,
            delivery.replay_id,
            (delivery.repeated OR (delivery.lease_token IS NOT NULL)) AS repeated
           FROM outbox.deliveries delivery
          WHERE ((delivery.lease_token IS NULL) OR (delivery.due_at <= now()))
        UNION ALL
         SELECT pair.subscription_id,
            pair."position",
            page.created_from,
            page.created_until,
            COALESCE(( SELECT max(entry.since) AS max
                   FROM UNNEST(page.subscriptions, page.owed_since) entry(subscription_id, since)
                  WHERE (entry.subscription_id = pair.subscription_id)), page.owed_since[1]) AS "coalesce",
            NULL::timestamp with time zone,
            0,
            'page'::text,
            page.id,
            pair.number,
            LEAST((page.deaths + 1), 2) AS "least",
            false,
            NULL::text,
            NULL::bigint,
            true
           FROM (outbox.pages page
             CROSS JOIN LATERAL outbox_internal.left_of(page.*) pair(subscription_id, "position", number))
          WHERE (page.due_at <= now())
        UNION ALL
         SELECT backlog.subscription_id,
            at."position",
            backlog.created_from,
            backlog.created_until,
            backlog.owed_since,
            NULL::timestamp with time zone,
            0,
            'backlog'::text,
            backlog.id,
            NULL::integer,
            LEAST((backlog.deaths)::integer, 2) AS "least",
            false,
            NULL::text,
            NULL::bigint,
            (backlog.deaths > 0)
           FROM ((outbox.backlog backlog
             CROSS JOIN LATERAL unnest(backlog.positions) span(span))
             CROSS JOIN LATERAL generate_series(lower(span.span), (upper(span.span) - 1)) at("position"))) place
     JOIN outbox.subscriptions subscription ON ((subscription.id = place.subscription_id)))
     LEFT JOIN LATERAL ( SELECT one.id,
            one.topic,
            one.key,
            one.organization,
            one.created_at
           FROM outbox.events one
          WHERE ((one."position" = place."position") AND ((one.created_at >= place.created_from) AND (one.created_at <= place.created_until)))
         LIMIT 1) event ON (true))
     LEFT JOIN LATERAL ( SELECT attempt.reason,
            attempt.status,
            attempt.answer
           FROM outbox.attempts attempt
          WHERE ((attempt."position" = place."position") AND (attempt.subscription_id = place.subscription_id))
          ORDER BY attempt.at DESC
         LIMIT 1) last ON (true));

COMMENT ON VIEW outbox.waiting IS 'One row for each delivery that no relay holds: one for a retry or for later (due_at), and one that waits until its subscription can take it or, with ordered_key, behind an earlier event of its key (due_at is null). With the reason, status and answer of its last attempt, as far as outbox.attempts has it. Not for large backlogs: use outbox.matching_deliveries with a limit.';

CREATE FUNCTION outbox.matching_deliveries(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, event uuid DEFAULT NULL::uuid, error_like text DEFAULT NULL::text) RETURNS SETOF outbox.waiting
    LANGUAGE sql STABLE
    AS $$
    select waiting.*
      from outbox.waiting as waiting
     where (matching_deliveries.subscription is null
            or waiting.subscription = matching_deliveries.subscription)
       and (matching_deliveries.topic is null
            or outbox.topic_matches(matching_deliveries.topic, waiting.topic))
       and (matching_deliveries.event is null
            or waiting.event_id = matching_deliveries.event)
       and (matching_deliveries.error_like is null
            or waiting.reason like matching_deliveries.error_like
            or waiting.answer like matching_deliveries.error_like
            or waiting.status::text like matching_deliveries.error_like)
$$;

COMMENT ON FUNCTION outbox.matching_deliveries(subscription text, topic text, event uuid, error_like text) IS 'The waiting deliveries that outbox.cancel would process with the same arguments. outbox.retry leaves out those that were asked for already, and those that an application scheduled for later, unless an event is named.';

CREATE FUNCTION outbox.pause(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    update outbox.subscriptions as existing set active = false
     where existing.id = outbox_internal.subscription_id(pause.name) and existing.active;
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.pause(name text) IS 'Stop sending. New deliveries are still recorded. Returns whether this changed anything.';

CREATE FUNCTION outbox.pause_replay(id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.check_replay(pause_replay.id);
    update outbox.replays as one set state = 'paused'
     where one.id = pause_replay.id and one.state = 'running';
    if not found then
        return false;
    end if;
    perform outbox_internal.audit_replay('replay paused', pause_replay.id);
    return true;
end;
$$;

COMMENT ON FUNCTION outbox.pause_replay(id bigint) IS 'Pause a replay: nothing more is queued for it. What is queued, at most 256 deliveries and those that wait for a retry, is still sent. Returns whether this changed anything.';

CREATE FUNCTION outbox.publish(topic text, payload jsonb, key text DEFAULT NULL::text, headers jsonb DEFAULT '{}'::jsonb, organization text DEFAULT NULL::text, id uuid DEFAULT NULL::uuid, priority integer DEFAULT 0, deliver_after timestamp with time zone DEFAULT NULL::timestamp with time zone, source text DEFAULT NULL::text, user_id text DEFAULT NULL::text, schema_version integer DEFAULT NULL::integer) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
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

COMMENT ON FUNCTION outbox.publish(topic text, payload jsonb, key text, headers jsonb, organization text, id uuid, priority integer, deliver_after timestamp with time zone, source text, user_id text, schema_version integer) IS 'Publish one event in the current transaction. Returns its id. The same id twice is one event.';

CREATE FUNCTION outbox.published(topic text DEFAULT NULL::text) RETURNS SETOF outbox.events
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
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

COMMENT ON FUNCTION outbox.published(topic text) IS 'The events that the current transaction has published so far, in the order of publishing, of topics that match the pattern. For tests of applications.';

CREATE FUNCTION outbox.redrive(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, error_like text DEFAULT NULL::text, since timestamp with time zone DEFAULT NULL::timestamp with time zone, max_rows integer DEFAULT 1000, id bigint DEFAULT NULL::bigint, until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET plan_cache_mode TO 'force_custom_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
declare
    target_id bigint := case when redrive.subscription is not null
                             then outbox_internal.subscription_id(redrive.subscription) end;
    chosen  bigint[];
    redriven bigint;
begin
    perform outbox_internal.check_max_rows(redrive.max_rows);
    perform outbox_internal.check_topic_pattern(redrive.topic);
    perform outbox_internal.ask_of_log();
    select array_agg(taken.id) into chosen
      from (select letter.id
              from outbox.dead_letters as letter
             where (target_id is null or letter.subscription_id = target_id)
               and (redrive.id is null or letter.id = redrive.id)
               and outbox_internal.is_asked_for(letter, redrive.topic, redrive.error_like,
                                                redrive.since, redrive.until)
               and letter.event_id is not null  -- what could not be read is never sent
               and exists (select from outbox.subscriptions as target
                            where target.id = letter.subscription_id)
             order by letter.position, letter.id
             limit max_rows
               for update of letter skip locked) as taken;

    -- What is there stays there. If a session's snapshot shows what has left since, this fails.
    perform from outbox.dead_letters as letter
            join outbox.events as event
              on event.position = letter.position and event.id = letter.event_id
           where letter.id = any (chosen)
             for key share of event;
    -- An event that was removed from the log is inserted again. Its transaction id is before every
    -- snapshot, so routing does not treat it as new. Two redrives at once insert it once: the
    -- second waits for the commit of the first.
    if exists (select from outbox.dead_letters as letter
                where letter.id = any (chosen)
                  and not exists (select from outbox.events as event
                                   where event.position = letter.position
                                     and event.id = letter.event_id)) then
        perform pg_advisory_xact_lock(7411003);
    end if;
    insert into outbox.events (
        xid, position, created_at, id, topic, key, payload, headers, organization, source, user_id,
        priority, schema_version)
    overriding system value
    select distinct on (letter.position)
           '1'::xid8, letter.position, letter.created_at, letter.event_id, letter.topic, letter.key,
           letter.payload, letter.headers, letter.organization, letter.source, letter.user_id,
           letter.priority, letter.schema_version
      from outbox.dead_letters as letter
     where letter.id = any (chosen)
       and not exists (select from outbox.events as event
                        where event.position = letter.position and event.id = letter.event_id);

    with gone as (
        delete from outbox.dead_letters as letter where letter.id = any (chosen)
        returning letter.subscription_id, letter.position, letter.created_at, letter.key
    )
    insert into outbox.deliveries (subscription_id, due_at, position, created_at, asked, key)
    select gone.subscription_id, clock_timestamp(), gone.position, gone.created_at, true,
           case when target.ordering = 'key' then gone.key end
      from gone
      join outbox.subscriptions as target on target.id = gone.subscription_id
     order by gone.position;
    get diagnostics redriven = row_count;
    perform outbox_internal.unpark(chosen);

    if redriven > 0 then
        perform outbox_internal.record_audit(
                    'redriven', redrive.subscription,
                    jsonb_build_object('topic', redrive.topic, 'error_like', redrive.error_like,
                                       'since', redrive.since, 'until', redrive.until,
                                       'max_rows', redrive.max_rows, 'id', redrive.id),
                    redriven);
    end if;
    if redriven > 0 and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return redriven;
end;
$$;

COMMENT ON FUNCTION outbox.redrive(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) IS 'Retry matching dead letters, oldest first, with the attempt count reset. Returns how many; call again while it returns max_rows.';

CREATE FUNCTION outbox.release("table" regclass) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    attached record;
    released boolean := false;
begin
    for attached in
        select t.tgrelid::regclass as captured, t.tgname as name
          from pg_trigger as t
         where t.tgfoid in ('outbox_internal.capture_changes()'::regprocedure,
                            to_regprocedure('outbox_internal.bridge_rows()'))
           and t.tgparentid = 0
           and (t.tgrelid = "table"
                or t.tgrelid in (select tree.relid from pg_partition_tree("table") as tree))
    loop
        execute format('drop trigger %I on %s', attached.name, attached.captured);
        released := true;
    end loop;
    return released;
end;
$$;

COMMENT ON FUNCTION outbox.release("table" regclass) IS 'Stop capturing or bridging a table. Existing events stay. Returns whether it was.';

CREATE FUNCTION outbox.replay(subscription text, since timestamp with time zone, until timestamp with time zone DEFAULT NULL::timestamp with time zone, topic text DEFAULT NULL::text, event uuid DEFAULT NULL::uuid, rate text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    planned outbox.replays;
    most    constant integer := 10;
    made    bigint;
begin
    perform outbox_internal.ask_of_log();
    planned := outbox_internal.plan_replay(
        replay.subscription, replay.since, replay.until, replay.topic, replay.event, replay.rate);
    if (select count(*) from outbox.replays as open
         where open.subscription_id = planned.subscription_id
           and open.state in ('running', 'paused')) >= most then
        raise exception using errcode = '54000',
            message = format('subscription %L has %s replays that have not ended',
                             replay.subscription, most),
            hint = 'Wait for one of them, or end one: select outbox.cancel_replay(id). '
                   'outbox.replay_status lists them.';
    end if;
    insert into outbox.replays (
        subscription_id, since, until, topic, event, rate, settled, window_end, page_after,
        first_position, until_position, position)
    values (planned.subscription_id, planned.since, planned.until, planned.topic, planned.event,
            planned.rate, planned.settled, planned.window_end, planned.page_after,
            planned.first_position, planned.until_position, planned.position)
    returning id into made;
    perform outbox_internal.record_audit(
                'replay started', replay.subscription,
                jsonb_build_object('id', made, 'since', planned.since, 'until', planned.until,
                                   'topic', planned.topic, 'event', planned.event,
                                   'rate', planned.rate));
    perform outbox_internal.ring_for_replay();
    return made;
end;
$$;

COMMENT ON FUNCTION outbox.replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) IS 'Send events of the log again to a subscription: those from since on and before until (null: up to now) that it wants as it is now, also if they were delivered. topic: only of topics that match the pattern. event: only this one; since may then be null. rate: the most in a time, such as 50/s. Live events go first. Returns the id of the replay, see outbox.replay_status.';

CREATE FUNCTION outbox.resume(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    update outbox.subscriptions as existing
       set active = true, resumed_at = clock_timestamp(),
           state = case when existing.state in ('gone', 'disabled') then 'pending'
                        else existing.state end,
           state_reason = case when existing.state in ('gone', 'disabled') then null
                               else existing.state_reason end
     where existing.id = outbox_internal.subscription_id(resume.name)
       and (not existing.active
            or exists (select from outbox.asked_pauses as pause
                        where pause.subscription_id = existing.id)
            or existing.state in ('gone', 'disabled'));
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.resume(name text) IS 'Send again after a pause, 410 (gone) or disabling. Returns whether this changed anything.';

CREATE FUNCTION outbox.resume_replay(id bigint) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.check_replay(resume_replay.id);
    update outbox.replays as one set state = 'running'
     where one.id = resume_replay.id and one.state = 'paused';
    if not found then
        return false;
    end if;
    perform outbox_internal.audit_replay('replay resumed', resume_replay.id);
    perform outbox_internal.ring_for_replay();
    return true;
end;
$$;

COMMENT ON FUNCTION outbox.resume_replay(id bigint) IS 'Go on with a paused replay. Returns whether this changed anything.';

CREATE FUNCTION outbox.retry(subscription text DEFAULT NULL::text, topic text DEFAULT NULL::text, event uuid DEFAULT NULL::uuid, error_like text DEFAULT NULL::text, max_rows integer DEFAULT 1000) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    retried bigint;
begin
    insert into outbox.deliveries (
        subscription_id, due_at, position, created_at, owed_since, attempt, unfinished, asked, key,
        replay_id, repeated)
    select taken.subscription_id, clock_timestamp(), taken.position, taken.created_at,
           least(taken.owed_since, clock_timestamp()), taken.attempts, taken.unfinished, true,
           taken.ordered_key, taken.replay_id, taken.repeated
      from outbox_internal.take_waiting(retry.subscription, retry.topic, retry.event,
                                        retry.error_like, retry.max_rows, true) as taken
     order by taken.position;
    get diagnostics retried = row_count;
    if retried > 0 then
        perform outbox_internal.record_audit(
                    'retried', retry.subscription,
                    jsonb_build_object('topic', retry.topic, 'event', retry.event,
                                       'error_like', retry.error_like, 'max_rows', retry.max_rows),
                    retried);
    end if;
    if retried > 0 and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return retried;
end;
$$;

COMMENT ON FUNCTION outbox.retry(subscription text, topic text, event uuid, error_like text, max_rows integer) IS 'Make matching deliveries due that wait, also behind a breaker. Their attempts go on counting. Returns how many; call again while it returns max_rows. Those of a paused subscription wait until it is resumed, and what an application scheduled for later is sent early only if its event is named.';

CREATE FUNCTION outbox.subscribe(name text, topics text[], sink text, config jsonb DEFAULT '{}'::jsonb, filter text DEFAULT NULL::text, transform text DEFAULT NULL::text, organization text DEFAULT NULL::text, ordering text DEFAULT 'none'::text, retry jsonb DEFAULT '{}'::jsonb, keys text[] DEFAULT NULL::text[], max_in_flight integer DEFAULT NULL::integer, match jsonb DEFAULT NULL::jsonb, start text DEFAULT 'now'::text, schema_version integer DEFAULT NULL::integer, on_exhausted text DEFAULT 'skip'::text, rate text DEFAULT NULL::text, "coalesce" text DEFAULT 'none'::text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    subscription_id bigint;
    is_new          boolean;
    since           timestamptz;
    detail          text;
    hint            text;
begin
    if subscribe.start is distinct from 'now' and subscribe.start is distinct from 'beginning' then
        begin
            since := subscribe.start::timestamptz;
        exception when others then
            since := null;
        end;
        if since is null or since not between '0001-01-01Z' and '9999-12-31Z' then
            raise exception using errcode = '22023',
                message = format('start: %L is neither now, beginning nor a time', subscribe.start),
                hint = 'For example ''2026-01-31 12:00+00''. It is used only when the subscription '
                       'is created.';
        end if;
    end if;
    if subscribe.sink = 'live' and subscribe.start <> 'now' then
        perform outbox_internal.refuse_for_channel('start');
    end if;
    begin
        insert into outbox.subscriptions as existing (
            name, topics, sink, config, match, filter, transform, organization, ordering, retry,
            keys, max_in_flight, schema_version, on_exhausted, rate, "coalesce")
        values (
            subscribe.name, subscribe.topics, subscribe.sink, coalesce(subscribe.config, '{}'),
            subscribe.match, subscribe.filter, subscribe.transform, subscribe.organization,
            coalesce(subscribe.ordering, 'none'), coalesce(subscribe.retry, '{}'), subscribe.keys,
            subscribe.max_in_flight, subscribe.schema_version,
            coalesce(subscribe.on_exhausted, 'skip'), subscribe.rate,
            coalesce(subscribe."coalesce", 'none'))
        on conflict on constraint subscriptions_name_key do update
           set topics = excluded.topics, sink = excluded.sink, config = excluded.config,
               match = excluded.match, filter = excluded.filter, transform = excluded.transform,
               organization = excluded.organization, ordering = excluded.ordering,
               retry = excluded.retry, keys = excluded.keys, max_in_flight = excluded.max_in_flight,
               schema_version = excluded.schema_version,
               on_exhausted = excluded.on_exhausted, rate = excluded.rate,
               "coalesce" = excluded."coalesce"
         where (existing.topics, existing.sink, existing.config, existing.match, existing.filter,
                existing.transform, existing.organization, existing.ordering, existing.retry,
                existing.keys, existing.max_in_flight, existing.schema_version,
                existing.on_exhausted, existing.rate, existing."coalesce")
               is distinct from
               (excluded.topics, excluded.sink, excluded.config, excluded.match, excluded.filter,
                excluded.transform, excluded.organization, excluded.ordering, excluded.retry,
                excluded.keys, excluded.max_in_flight, excluded.schema_version,
                excluded.on_exhausted, excluded.rate, excluded."coalesce")
        returning existing.id, existing.xmax = 0 into subscription_id, is_new;
    exception when data_exception or integrity_constraint_violation or feature_not_supported then
        -- Raised again, an error does not show the statement above.
        get stacked diagnostics detail = pg_exception_detail, hint = pg_exception_hint;
        raise exception using errcode = sqlstate,
            message = concat_ws('. ', sqlerrm, nullif(detail, '')),
            hint = coalesce(nullif(hint, ''), 'See docs/subscribe.md.');
    end;
    if is_new and subscribe.start <> 'now' then
        insert into outbox.starts (subscription_id, since)
        select made.id, made.since from (select subscription_id, since) as made (id, since);
    end if;
    if subscription_id is null then  -- it existed already and did not change
        select existing.id into subscription_id
          from outbox.subscriptions as existing
         where existing.name = subscribe.name;
    end if;
    return subscription_id;
end;
$$;

COMMENT ON FUNCTION outbox.subscribe(name text, topics text[], sink text, config jsonb, filter text, transform text, organization text, ordering text, retry jsonb, keys text[], max_in_flight integer, match jsonb, start text, schema_version integer, on_exhausted text, rate text, "coalesce" text) IS 'Create or change a subscription. Calling it twice changes nothing. A pause is kept. Past events are delivered only with start. Returns the id.';

CREATE FUNCTION outbox.topic_matches(pattern text, topic text) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select ('.' || topic) ~ outbox_internal.topic_expression(pattern)
       and (starts_with(pattern, 'outbox.') or not starts_with(topic, 'outbox.'))
$$;

CREATE FUNCTION outbox.uninstall(confirm text, force boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    owner    text;
    running  text;
    captured regclass;
    subject  text := current_database();
begin
    select pg_get_userbyid(nspowner) into owner
      from pg_namespace
     where nspname = 'outbox';
    if not pg_has_role(owner, 'usage') then
        raise exception using errcode = '42501',
            message = format('only %s, who owns the schema outbox, may remove it', owner);
    end if;
    if confirm is distinct from subject then
        raise exception using errcode = '22023',
            message = 'confirm: is not the name of this database',
            hint = format('Call outbox.uninstall(%L). It removes the outbox of this database with '
                          'all of its events.', subject);
    end if;
    if not coalesce(force, false) then
        select string_agg(relay.name, ', ' order by relay.name) into running
          from outbox.relays as relay
         where relay.seen_at > now() - interval '15 seconds';
        if running is not null then
            raise exception using errcode = '55006',
                message = format('relays run: %s', running),
                hint = 'Stop them first.';
        end if;
        if exists (select from outbox.owed)
           or exists (select from outbox.log_status as log where log.unrouted > 0)
           or exists (select from outbox.dead_letters) then
            raise exception using errcode = '55000',
                message = 'not all events were delivered, or some are dead letters',
                hint = format('See outbox.subscription_status and outbox.log_status. To remove '
                              'them too: outbox.uninstall(%L, force => true).', subject);
        end if;
        if to_regclass('outbox.inbox') is not null then
            raise exception using errcode = '55000',
                message = 'this database has an inbox in the schema outbox',
                hint = format('To remove it too: outbox.uninstall(%L, force => true).', subject);
        end if;
    end if;
    for captured in
        select distinct attached.tgrelid::regclass
          from pg_trigger as attached
          join pg_proc as proc
            on proc.oid = attached.tgfoid
           and proc.pronamespace = 'outbox_internal'::regnamespace
          join pg_class as class
            on class.oid = attached.tgrelid
           and class.relnamespace not in ('outbox'::regnamespace, 'outbox_internal'::regnamespace)
         where not attached.tgisinternal
           and attached.tgparentid = 0
    loop
        perform outbox.release(captured);
    end loop;
    drop schema outbox, outbox_internal cascade;
end;
$$;

COMMENT ON FUNCTION outbox.uninstall(confirm text, force boolean) IS 'Remove the outbox from this database: captures, bridges and both schemas with all events. For the owner of the schema. confirm: the name of the database. Refused while a relay runs, while something is not delivered, and where there are dead letters or an inbox, unless force is true. Not undone after the commit.';

CREATE FUNCTION outbox.unpark(subscription text, key text DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    target   bigint := outbox_internal.subscription_id(unpark.subscription);
    unparked bigint;
begin
    unparked := outbox_internal.unpark(array(
        select parked.dead_letter_id
          from outbox.parked_keys as parked
         where parked.subscription_id = target
           and (unpark.key is null or parked.key = unpark.key)));
    if unparked > 0 then
        perform outbox_internal.record_audit('unparked', unpark.subscription,
                                             jsonb_build_object('key', unpark.key), unparked);
    end if;
    if unparked > 0 and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return unparked;
end;
$$;

COMMENT ON FUNCTION outbox.unpark(subscription text, key text) IS 'Let parked keys of a subscription go on with their next event, without the one that parked them: its dead letter stays. key: one of them; null: all. Returns how many.';

CREATE FUNCTION outbox.unsubscribe(name text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    delete from outbox.subscriptions as existing where existing.name = unsubscribe.name;
    return found;
end;
$$;

COMMENT ON FUNCTION outbox.unsubscribe(name text) IS 'Delete a subscription and its pending deliveries. Dead letters stay. Returns whether it existed.';

CREATE FUNCTION outbox.wait(event uuid, timeout interval DEFAULT '00:00:10'::interval) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare
    began   timestamptz := clock_timestamp();
    looked  timestamptz;
    place   record;
    status  text;
    pause   double precision := 0.01;
    left_to_wait double precision;
begin
    if wait.event is null then
        raise exception using errcode = '22023', message = 'event: is null',
            hint = 'Give the id that outbox.publish returned.';
    end if;
    if wait.timeout is null or wait.timeout <= interval '0' or wait.timeout > interval '1 hour' then
        raise exception using errcode = '22023',
            message = format('timeout: %s is not above 0 and at most 1 hour',
                             coalesce(wait.timeout::text, 'null')),
            hint = 'For example ''10s''. Call it again to wait longer.';
    end if;
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception using errcode = '22023',
            message = format('outbox.wait cannot see progress in a transaction that is %s',
                             current_setting('transaction_isolation')),
            hint = 'Call it outside of a transaction, or in one that is read committed.';
    end if;
    loop
        looked := clock_timestamp();
        if place is null then
            select * into place from outbox_internal.find_event(wait.event);
            if not found then
                if exists (select from outbox.dead_letters as letter
                            where letter.event_id = wait.event) then
                    return 'failed';
                end if;
                raise exception using errcode = '22023',
                    message = format('event: there is no event %s, and no dead letter of it',
                                     wait.event),
                    hint = 'Its transaction has not committed or was rolled back, or the event '
                           'was removed from the log.';
            end if;
            if place.xid = pg_current_xact_id_if_assigned() then
                raise exception using errcode = '22023',
                    message = format('event: %s was published by this transaction, and is sent '
                                     'only after its commit',
                                     wait.event),
                    hint = 'Commit first, then call outbox.wait.';
            end if;
        end if;
        select current.status into status
          from outbox.event_status as current
         where current.position = place.position
           and current.created_at = place.created_at
           and current.id = wait.event;
        if not found then
            place := null;  -- it was removed meanwhile
            continue;
        end if;
        if status in ('completed', 'failed') then
            return status;
        end if;
        left_to_wait := extract(epoch from began + wait.timeout - clock_timestamp());
        if left_to_wait <= 0 then
            return 'pending';
        end if;
        -- Where a look takes long, because much is owed, it is made less often.
        perform pg_sleep(least(left_to_wait,
                               greatest(pause,
                                        4 * extract(epoch from clock_timestamp() - looked))));
        pause := least(pause * 1.5, 0.25);
    end loop;
end;
$$;

COMMENT ON FUNCTION outbox.wait(event uuid, timeout interval) IS 'Wait after the commit until nothing is owed of an event, at most for a timeout of up to an hour. Returns completed, failed (there is a dead letter), or pending: the time is over. An event that nobody wants is completed. While a call lasts it holds its connection and keeps vacuum back, so call it again rather than for long.';

CREATE FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) RETURNS text
    LANGUAGE plpgsql
    AS $$
declare
    parent text := format('outbox.%I', log);
    made   text := format('%s_%s', log, to_char(low at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
    part   regclass;
begin
    perform set_config('synchronous_commit', 'local', true);
    if to_regclass(format('outbox.%I', made)) is not null then
        made := made || to_char(low at time zone 'UTC', 'SS') || '_'
                || to_char(high at time zone 'UTC', 'YYYYMMDD"t"HH24MI');
    end if;
    execute format('create table outbox.%I (like %s including all excluding identity)',
                   made, parent);
    part := to_regclass(format('outbox.%I', made));
    perform outbox_internal.finish_partition(part, log);
    execute format('alter table %s attach partition %s for values from (%L) to (%L)',
                   parent, part, low, high);
    return made;
end;
$$;

CREATE FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb DEFAULT '{}'::jsonb) RETURNS uuid
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    return outbox.publish(
        topic => 'outbox.subscription.' || announce.what,
        key => announce.subscription,
        organization => announce.organization,
        source => 'pgoutbox',
        payload => jsonb_build_object(
                       'subscription', announce.subscription,
                       'organization', announce.organization,
                       'reason', announce.reason,
                       'at', clock_timestamp(),
                       'by', session_user)
                   || announce.details);
exception when others then
    raise warning 'outbox.subscription.% of % was not published: %', announce.what,
                  announce.subscription, sqlerrm;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.announce_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    happened text[] := '{}';
    one      text;
begin
    if old.active and not new.active then
        happened := '{paused}';
    elsif new.active
          and (not old.active
               or old.state in ('gone', 'disabled') and new.state in ('pending', 'ok')) then
        happened := '{resumed}';
    end if;
    if new.state is distinct from old.state and new.state in ('invalid', 'gone', 'disabled') then
        happened := happened || new.state;
    end if;
    foreach one in array happened loop
        -- Relays may disagree about a subscription, again and again.
        if one = 'invalid' then
            insert into outbox.announcements as last (subscription_id, what, at, reason)
            values (new.id, 'invalid', clock_timestamp(), new.state_reason)
            on conflict (subscription_id, what) do update
               set at = excluded.at, reason = excluded.reason
             where last.reason is distinct from excluded.reason
                or last.at < excluded.at - interval '10 minutes';
            continue when not found;
        end if;
        perform outbox_internal.announce(
                    one, new.name, new.organization,
                    case when one in ('invalid', 'gone', 'disabled')
                           or one = 'paused' and new.state_reason like 'halted:%'
                         then new.state_reason end);
    end loop;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.ask_of_log() RETURNS void
    LANGUAGE sql
    AS $$
    select pg_advisory_xact_lock_shared(7411006)
$$;

CREATE FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) RETURNS text
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
declare
    known       record;
    prefix      text;
    wanted      text[] := coalesce(operations, '{insert,update,delete}');
    listed      text[] := array(select distinct l.name
                                  from unnest(coalesce(columns, exclude)) as l (name)
                                 order by l.name);
    key_names   text[] := '{}';
    identity    text[];
    names       text[];
    item        text;
    argument    text;
    statements  text[];
    probe       refcursor;
begin
    if relation is null then
        raise exception using errcode = '22023',
            message = 'table: is null',
            hint = 'Name a table, for example outbox.capture(''public.orders'').';
    end if;
    select c.oid, c.relkind, c.relpersistence, c.relispartition, c.relowner, n.nspname, c.relname,
           exists (select from pg_inherits as i
                    where i.inhrelid = c.oid
                       or (i.inhparent = c.oid and c.relkind = 'r')) as inherits
      into known
      from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
     where c.oid = relation;

    if known.relkind not in ('r', 'p') then
        raise exception using errcode = '42809',
            message = format('table: %s is a %s, and only tables can be captured', relation,
                             case known.relkind when 'v' then 'view'
                                                when 'm' then 'materialized view'
                                                when 'f' then 'foreign table'
                                                when 'S' then 'sequence'
                                                when 't' then 'TOAST table'
                                                else 'relation without rows' end),
            hint = case when known.relkind in ('v', 'm') then 'Capture the tables that it reads.'
                        when known.relkind = 'f'
                        then 'Capture the table in its own database; changes made there do not run '
                             'triggers here.'
                        else 'Name a table.' end;
    elsif known.nspname in ('pg_catalog', 'information_schema') or known.oid < 16384 then
        raise exception using errcode = '42809',
            message = format('table: %s is a system table', relation);
    elsif known.nspname in ('outbox', 'outbox_internal') then
        raise exception using errcode = '42809',
            message = format('table: %s belongs to the outbox; each event would create another',
                             relation);
    elsif known.relpersistence = 't' then
        raise exception using errcode = '42809',
            message = format('table: %s is temporary', relation),
            hint = 'Only its session sees it. Publish events with outbox.publish instead.';
    elsif known.relispartition then
        raise exception using errcode = '42809',
            message = format('table: %s is a partition', relation),
            hint = format('Capture the whole table: outbox.capture(%L).',
                          pg_partition_root(relation)::text);
    elsif known.inherits then
        raise exception using errcode = '42809',
            message = format('table: %s inherits or is inherited from', relation),
            hint = 'A change through the parent does not run the triggers of the child. Tables '
                   'with declarative partitions can be captured.';
    elsif not pg_has_role(known.relowner, 'usage') then
        raise exception using errcode = '42501',
            message = format('table: must be owner of table %s', relation);
    end if;

    select coalesce(array_agg(a.attname::text order by a.attnum), '{}') into names
      from pg_attribute as a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;

    prefix := coalesce(topic, known.nspname || '.' || known.relname);
    if prefix = 'outbox' or starts_with(prefix, 'outbox.') then
        raise exception using errcode = '22023',
            message = format('topic: %L is reserved: the outbox publishes its own events there',
                             prefix),
            hint = 'Use another first segment, such as topic => ''shop.orders''.';
    elsif length(prefix) > 248 or prefix !~ '^[^.*[:cntrl:] ]+([.][^.*[:cntrl:] ]+)*$' then
        raise exception using errcode = '22023',
            message = format('topic: %L is not a valid prefix of topics', prefix),
            hint = 'Use segments separated by dots, without blanks and stars, at most 248 '
                   'characters (".create" is appended), such as topic => ''shop.orders''.';
    end if;

    if cardinality(wanted) = 0 then
        raise exception using errcode = '22023',
            message = 'operations: is empty',
            hint = 'To stop capturing a table: outbox.release.';
    end if;
    foreach item in array wanted loop
        if item is null or item not in ('insert', 'update', 'delete') then
            raise exception using errcode = '22023',
                message = format('operations: %L is not an operation', item),
                hint = 'Use insert, update and delete.';
        end if;
    end loop;
    select array_agg(distinct o.operation) into wanted from unnest(wanted) as o (operation);

    if columns is not null and exclude is not null then
        raise exception using errcode = '22023',
            message = 'exclude: cannot be combined with columns',
            hint = 'List either the columns to show or those to hide.';
    end if;
    foreach item in array listed loop
        if item is null or item <> all (names) then
            raise exception using errcode = '42703',
                message = format('%s: table %s has no column %L',
                                 case when columns is null then 'exclude' else 'columns' end,
                                 relation, item);
        end if;
    end loop;
    if cardinality(columns) = 0 or listed @> names and columns is null then
        raise exception using errcode = '22023',
            message = format('%s: leaves no column to show',
                             case when columns is null then 'exclude' else 'columns' end);
    end if;

    select coalesce(array_agg(a.attname::text order by k.place), '{}') into identity
      from pg_index as i
     cross join lateral unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
      join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
     where i.indrelid = relation and i.indisprimary and k.place <= i.indnkeyatts;
    if key is null then
        key_names := identity;
    else
        foreach item in array
            case when key = '' or key = any (names) then array[key]
                 else string_to_array(key, ',') end
        loop
            item := case when item = any (names) then item else btrim(item) end;
            if item <> all (names) then
                raise exception using errcode = '42703',
                    message = format('key: table %s has no column %L', relation, item),
                    hint = 'Use one column, or several separated by commas.';
            end if;
            key_names := key_names || item;
        end loop;
    end if;

    argument := jsonb_build_object(
        'topic', prefix,
        'diff', coalesce(diff, true),
        'condition', condition,
        'table', relation::oid::bigint,
        'key', key_names::text,
        'key_at', outbox_internal.capture_numbers(relation, key_names)::text,
        'identity', identity::text,
        'identity_at', outbox_internal.capture_numbers(relation, identity)::text,
        'exclude', columns is null,
        'listed', listed::text,
        'listed_at', outbox_internal.capture_numbers(relation, listed)::text,
        'operations', wanted::text);

    -- Compares existing with required triggers. If they are the same, nothing is locked.
    with operation as (
        -- Row triggers are needed for a condition, for updates without an identity to pair rows by,
        -- and for partitioned tables without one, where an update may become a delete and an insert
        -- in two partitions.
        select o.operation,
               condition is not null
               or (identity = '{}'
                   and (known.relkind = 'p' or o.operation = 'update')) as by_row
          from unnest(wanted) as o (operation)
    ),
    should as (
        select relation as captured, 'outbox_capture_' || o.operation as name, o.operation,
               o.by_row, true as same
          from operation as o
        union all
        -- A statement on a partition runs only the triggers of that partition. PostgreSQL copies
        -- row triggers to partitions itself.
        select tree.relid, 'outbox_capture_partition_' || o.operation, o.operation, false, true
          from pg_partition_tree(relation) as tree
          join pg_class as c on c.oid = tree.relid and c.relkind in ('r', 'p'),
               operation as o
         where tree.relid <> relation and not o.by_row
    ),
    present as (
        select t.tgrelid::regclass as captured, t.tgname::text as name,
               t.tgtype::int & 1 = 1 as by_row,
               t.tgargs = convert_to(argument, getdatabaseencoding()) || decode('00', 'hex') as same
          from pg_trigger as t
         where t.tgfoid = 'outbox_internal.capture_changes()'::regprocedure and t.tgparentid = 0
           and (t.tgrelid = relation
                or t.tgrelid in (select tree.relid from pg_partition_tree(relation) as tree))
    ),
    difference as (
        select present.captured as old, should.captured as new,
               coalesce(present.name, should.name) as name, should.operation, should.by_row
          from should
          full join present
            on present.captured = should.captured
           and present.name = should.name
           and present.by_row = should.by_row
           and present.same = should.same
         where present.captured is null or should.captured is null
    )
    select array_agg(case when d.old is not null then format('drop trigger %I on %s', d.name, d.old)
                          else format('create trigger %I after %s on %s %s for each %s '
                                      'execute function outbox_internal.capture_changes(%L)',
                                      d.name, d.operation, d.new,
                                      case when d.by_row then ''
                                           else 'referencing'
                                                || case when d.operation <> 'insert'
                                                        then ' old table as outbox_before'
                                                        else '' end
                                                || case when d.operation <> 'delete'
                                                        then ' new table as outbox_after'
                                                        else '' end end,
                                      case when not d.by_row
                                           then format('statement when (%s)',
                                                       outbox_internal.capture_mark(relation,
                                                                                    d.operation))
                                           when condition is null then 'row'
                                           else E'row when ((' || condition || E'\n))' end,
                                      argument) end
                     order by d.old is null, d.name, d.old, d.new)
      into statements
      from difference as d;
    if statements is null then
        return prefix;
    end if;

    execute format('lock table %s in share row exclusive mode', relation);
    begin
        perform set_config('search_path', caller_path, true);
        if condition is not null then
            -- A cursor accepts only one statement, so a condition with a second statement is
            -- refused before it runs.
            open probe for execute
                pg_catalog.format(E'select (%s\n) from %s as new, %s as old where false',
                                  condition, relation, relation);
            close probe;
        end if;
        foreach item in array statements loop
            execute item;
        end loop;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    exception
        when syntax_error_or_access_rule_violation
            or feature_not_supported
            or data_exception
            or invalid_object_definition
            or invalid_cursor_definition
        then
            if condition is null or sqlstate = '42501' then
                raise;
            end if;
            raise exception using errcode = sqlstate, message = format('condition: %s', sqlerrm),
                hint = 'Write an expression about NEW and OLD, as in WHEN of a trigger. An insert '
                       'has no OLD and a delete no NEW, so limit the operations, such as '
                       'operations => ''{update}''.';
    end;
    return prefix;
end;
$_$;

CREATE FUNCTION outbox_internal.audit_limit() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.record_audit(
                'limited', null,
                jsonb_build_object('organization', coalesce(new.organization, old.organization),
                                   'rate', new.rate));
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.audit_replay(action text, id bigint, rows bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    select outbox_internal.record_audit(audit_replay.action, subscription.name,
                                        jsonb_build_object('id', replay.id), audit_replay.rows)
      from outbox.replays as replay
      join outbox.subscriptions as subscription on subscription.id = replay.subscription_id
     where replay.id = audit_replay.id
$$;

CREATE FUNCTION outbox_internal.audit_subscription() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    fields text[];
begin
    if tg_op = 'INSERT' then
        perform outbox_internal.record_audit('created', new.name,
                                             jsonb_build_object('sink', new.sink));
        return null;
    elsif tg_op = 'DELETE' then
        perform outbox_internal.record_audit('deleted', old.name);
        return null;
    end if;
    select coalesce(array_agg(field.key order by field.key), '{}') into fields
      from jsonb_each(to_jsonb(new)) as field
     where field.value is distinct from to_jsonb(old) -> field.key
       and field.key not in ('active', 'state', 'state_reason', 'owed_until', 'resumed_at',
                             'created_at', 'updated_at', 'changed');
    if fields <> '{}' then
        perform outbox_internal.record_audit(
                    'changed', new.name,
                    jsonb_build_object('fields', fields,
                                       'was', case when old.name <> new.name then old.name end));
    end if;
    if old.active and not new.active then
        perform outbox_internal.record_audit('paused', new.name);
    elsif new.active and not old.active
          or fields = '{}'
             and (new.resumed_at is distinct from old.resumed_at
                  or old.state in ('gone', 'disabled')
                     and new.state not in ('gone', 'disabled')) then
        perform outbox_internal.record_audit('resumed', new.name);
    end if;
    if new.state in ('gone', 'disabled') and new.state <> old.state then
        perform outbox_internal.record_audit(new.state, new.name,
                                             jsonb_build_object('reason', new.state_reason));
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select to_timestamp((floor(extract(epoch from at) / extract(epoch from width)) + 1)
                        * extract(epoch from width))
$$;

CREATE FUNCTION outbox_internal.bridge_json(value text) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    return value::jsonb;
exception
    when others then
        return to_jsonb(value);
end;
$$;

CREATE FUNCTION outbox_internal.bridge_rows() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    SET "IntervalStyle" TO 'iso_8601'
    SET bytea_output TO 'hex'
    SET extra_float_digits TO '1'
    AS $_$
declare
    settings jsonb := tg_argv[0];
    topic    text;
    payload  text;
    id       text;
begin
    -- A trigger made by hand without transition tables would read this instead.
    if to_regclass('pg_temp.outbox_after') is not null then
        raise exception using errcode = '42501',
            message = 'a temporary relation must not be called outbox_after',
            hint = 'outbox.bridge uses this name for the inserted rows.';
    end if;
    if not exists (select from outbox_after) then  -- no event, so no notification
        return null;
    end if;
    -- `format` calls the output function of a type, which only superusers can define, and never a
    -- cast.
    select string_agg(case when piece.value ? 'column'
                           then format('outbox_internal.bridge_topic(format(''%%s'', n.%I))',
                                       piece.value ->> 'column')
                           else quote_literal(piece.value ->> 'text') end,
                      ' || ' order by piece.place)
      into topic
      from jsonb_array_elements(settings -> 'topic') with ordinality as piece (value, place);
    select case a.atttypid
                when 'jsonb'::regtype then format('n.%I', a.attname)
                when 'json'::regtype then format('outbox_internal.capture_json(n.%I)', a.attname)
                else format('case when n.%1$I is distinct from null '
                            'then outbox_internal.bridge_json(format(''%%s'', n.%1$I)) end',
                            a.attname) end
      into payload
      from pg_attribute as a
     where a.attrelid = tg_relid and a.attname = settings ->> 'payload';
    select format('n.%I', a.attname) into id
      from pg_attribute as a
     where a.attrelid = tg_relid and a.attname = settings ->> 'id'
       and a.atttypid = 'uuid'::regtype;
    execute format('insert into outbox.events (
                        id, topic, key, payload, headers, organization, user_id, source)
                    select coalesce(%s, outbox.new_id()), rtrim(regexp_replace(left(%s, 254), ''^outbox[.]'',
                                                       ''_outbox.''), ''.''), %s,
                           coalesce(%s, ''null''), $1, $2, $3, $4
                      from outbox_after as n',
                   coalesce(id, 'null'), topic,
                   case when settings ? 'key'
                        then format('outbox_internal.capture_simple_key(jsonb_build_object('
                                    '''key'', nullif(format(''%%s'', n.%I), '''')), ''key'')',
                                    settings ->> 'key')
                        else 'null' end,
                   payload)
      using outbox_internal.capture_headers(),
            outbox_internal.capture_setting('outbox.organization'),
            outbox_internal.capture_setting('outbox.user_id'),
            outbox_internal.capture_setting('outbox.source');
    return null;
end;
$_$;

CREATE FUNCTION outbox_internal.bridge_topic(value text) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
    select btrim(regexp_replace(
                     '.' || regexp_replace(coalesce(value, ''), '[*[:cntrl:] ]', '_', 'g') || '.',
                     '[.](?=[.])', '._', 'g'),
                 '.')
$$;

CREATE FUNCTION outbox_internal.bump_generation() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if current_setting('outbox.generation_bumped_by', true)
       is distinct from pg_current_xact_id()::text then
        perform set_config('outbox.generation_bumped_by', pg_current_xact_id()::text, true);
        update outbox.generation set value = value + 1;
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) RETURNS TABLE(number integer, code text, message text)
    LANGUAGE plpgsql
    AS $$
declare
    call    text := outbox_internal.function_call(function);
    rows    bigint[] := '{}';
    worked  integer[] := '{}';
    caller  text := current_user;
    settled bigint;
    n       integer;
    held    record;
begin
    for n in 1 .. cardinality(numbers) loop
        number := n;
        begin
            execute call using events[n]::jsonb;
            if current_user <> caller then
                raise exception using errcode = '42501',
                    message = format('the function left the role as %s', current_user);
            end if;
            if pages[n] is null then
                rows := rows || numbers[n];
            else
                worked := worked || n;
            end if;
            code := null;
            message := null;
        exception when others then
            get stacked diagnostics code = returned_sqlstate, message = message_text;
        end;
        return next;
    end loop;
    -- What the application put off to the commit runs now, while the limit for statements holds and
    -- no delivery is locked.
    set constraints all immediate;
    for held in
        select pages[at] as page,
               range_agg(int4range(numbers[at]::integer, numbers[at]::integer + 1)) as done
          from unnest(worked) as at group by pages[at] order by pages[at]
    loop
        update outbox.pages as page set done = page.done + held.done
         where page.id = held.page
           and page.lease_token = any (lease_tokens)
           and not page.done && held.done;
        if not found then
            raise exception using errcode = '40001',
                message = 'the lease of a delivery was lost while its function ran: all is undone';
        end if;
    end loop;
    delete from outbox.deliveries as delivery
     where delivery.id = any (rows) and delivery.lease_token = any (lease_tokens);
    get diagnostics settled = row_count;
    if settled <> cardinality(rows) then
        raise exception using errcode = '40001',
            message = 'the lease of a delivery was lost while its function ran: all is undone';
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.capture_changes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
    SET "DateStyle" TO 'ISO, YMD'
    SET "IntervalStyle" TO 'iso_8601'
    SET bytea_output TO 'hex'
    SET extra_float_digits TO '1'
    AS $_$
declare
    settings     jsonb   := tg_argv[0];
    key_at       int2[]  := settings ->> 'key_at';
    -- whether the settings allow the short path; the columns are looked up later
    is_simple    boolean := settings ->> 'listed' = '{}' and cardinality(key_at) = 1
                            and settings ->> 'identity_at' = settings ->> 'key_at'
                            and (settings ->> 'table')::oid = tg_relid;
    simple_key   text;
    rows         bigint  := 1;                        -- rows of the statement: 0, 1, or 2 for more
    row_before   jsonb;
    row_after    jsonb;
    prefix       text;
    diff         boolean;
    described    oid;                                 -- table to which the numbers refer
    identity_at  int2[];
    listed       text[];                              -- columns shown, or with exclude, hidden
    listed_at    int2[];
    exclude      boolean;
    all_hidden   boolean := false;
    key_columns  text[];
    identity_columns text[];
    hidden       text[];
    is_plain     boolean;
    organization text;
    user_id      text;
    source       text;
    headers      jsonb;
    expression   text;
    payload      jsonb;
    befores      jsonb[];
    afters       jsonb[];
    first        bigint;
    -- whether no other capture of the table is open or has ended meanwhile; then this one is ended
    is_alone     boolean :=
        case when current_setting('outbox.capturing_' || (settings ->> 'table'), true)
                  = left(tg_op, 1)
             then set_config('outbox.capturing_' || (settings ->> 'table'), '', true) = ''
             else tg_level = 'ROW' end;
begin
    -- outbox.capture refuses it, and a trigger made by hand publishes nothing there either.
    if starts_with(settings ->> 'topic', 'outbox.') or settings ->> 'topic' = 'outbox' then
        raise exception using errcode = '42501',
            message = 'topic: topics that begin with outbox. are reserved';
    end if;
    if not is_alone then
        first := outbox_internal.capture_position();
    end if;

    <<written>>
    begin
        if tg_level = 'STATEMENT' then
            -- A trigger made by hand without transition tables would read these instead, with the
            -- rights of the owner.
            if to_regclass('pg_temp.outbox_before') is not null
               or to_regclass('pg_temp.outbox_after') is not null then
                raise exception using errcode = '42501',
                    message = 'a temporary relation must not be called outbox_before or '
                              'outbox_after',
                    hint = 'outbox.capture uses these names for the changed rows.';
            end if;
            if tg_op = 'DELETE' then
                rows := (select count(*) from (select from outbox_before limit 2) as n);
            else
                rows := (select count(*) from (select from outbox_after limit 2) as n);
            end if;
            if rows = 0 then  -- no event, so no notification
                exit written;
            end if;
        end if;

        -- The short path. No row is converted before capture_simple has read its types: to_jsonb of
        -- another type could call code of the type's owner.
        if is_simple and tg_level = 'STATEMENT' and tg_op = 'INSERT' then
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select (settings ->> 'topic') || '.create',
                   outbox_internal.capture_simple_key(n.held, simple.key_column),
                   outbox_internal.capture_whole(n.held),
                   outbox_internal.capture_headers(),
                   outbox_internal.capture_setting('outbox.organization'),
                   outbox_internal.capture_setting('outbox.user_id'),
                   outbox_internal.capture_setting('outbox.source')
              from outbox_internal.capture_simple(tg_relid, key_at) as simple
             cross join lateral (select to_jsonb(n.*) as held
                                   from outbox_after as n
                                  where simple.key_column is not null offset 0) as n;
            if found then
                exit written;
            end if;
        elsif is_simple and tg_level = 'STATEMENT' and tg_op = 'DELETE' then
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select (settings ->> 'topic') || '.delete',
                   outbox_internal.capture_simple_key(n.held, simple.key_column),
                   outbox_internal.capture_whole(n.held),
                   outbox_internal.capture_headers(),
                   outbox_internal.capture_setting('outbox.organization'),
                   outbox_internal.capture_setting('outbox.user_id'),
                   outbox_internal.capture_setting('outbox.source')
              from outbox_internal.capture_simple(tg_relid, key_at) as simple
             cross join lateral (select to_jsonb(n.*) as held
                                   from outbox_before as n
                                  where simple.key_column is not null offset 0) as n;
            if found then
                exit written;
            end if;
        elsif is_simple then
            select simple.key_column into simple_key
              from outbox_internal.capture_simple(tg_relid, key_at) as simple;
        end if;

        if rows = 1 and simple_key is not null then
            if tg_level = 'STATEMENT' then
                select o.held, n.held into row_before, row_after
                  from (select to_jsonb(o.*) as held from outbox_before as o) as o,
                       (select to_jsonb(n.*) as held from outbox_after as n) as n;
            else
                if tg_op <> 'INSERT' then row_before := to_jsonb(old.*); end if;
                if tg_op <> 'DELETE' then row_after := to_jsonb(new.*); end if;
            end if;
            if row_before = row_after then  -- no visible column changed
                exit written;
            end if;
            if row_before is null or row_after is null
               or row_before ->> simple_key is not distinct from row_after ->> simple_key then
                insert into outbox.events (
                    topic, key, payload, headers, organization, user_id, source)
                values (
                    (settings ->> 'topic') || case when row_before is null then '.create'
                                                   when row_after is null then '.delete'
                                                   else '.update' end,
                    outbox_internal.capture_simple_key(coalesce(row_after, row_before), simple_key),
                    outbox_internal.capture_payload(row_before, row_after, '{}',
                                           (settings ->> 'diff')::boolean),
                    outbox_internal.capture_headers(),
                    outbox_internal.capture_setting('outbox.organization'),
                    outbox_internal.capture_setting('outbox.user_id'),
                    outbox_internal.capture_setting('outbox.source'));
                exit written;
            end if;
        end if;

        prefix       := settings ->> 'topic';
        diff         := settings ->> 'diff';
        described    := settings ->> 'table';
        identity_at  := settings ->> 'identity_at';
        listed       := settings ->> 'listed';
        listed_at    := settings ->> 'listed_at';
        exclude      := settings ->> 'exclude';
        organization := outbox_internal.capture_setting('outbox.organization');
        user_id      := outbox_internal.capture_setting('outbox.user_id');
        source       := outbox_internal.capture_setting('outbox.source');
        headers      := outbox_internal.capture_headers();

        if tg_relid <> described
           and not exists (select from pg_partition_ancestors(tg_relid) as ancestor (relation)
                            where ancestor.relation = described) then
            -- The table was restored from a dump, or is a detached partition, whose triggers do
            -- nothing.
            if starts_with(tg_name, 'outbox_capture_partition_') and not exists (
                   select from pg_partition_ancestors(tg_relid) as ancestor (relation)
                     join pg_trigger as own on own.tgrelid = tg_relid and own.tgname = tg_name
                     join pg_trigger as other
                       on other.tgrelid = ancestor.relation
                      and other.tgfoid = own.tgfoid
                      and other.tgargs = own.tgargs
                    where ancestor.relation <> tg_relid) then
                exit written;
            end if;
            described   := tg_relid;
            key_at      := outbox_internal.capture_numbers(tg_relid, (settings ->> 'key')::text[]);
            identity_at := outbox_internal.capture_numbers(tg_relid,
                                                           (settings ->> 'identity')::text[]);
            listed_at   := outbox_internal.capture_numbers(tg_relid, listed);
            -- An excluded column was renamed before the dump: hide all columns, so that it is not
            -- shown.
            all_hidden  := exclude and cardinality(listed_at) < cardinality(listed);
        end if;

        if simple_key is not null then
            key_columns := array[simple_key];
            identity_columns := key_columns;
            hidden   := '{}';
            is_plain := true;
        else
            select coalesce(array_agg(a.name order by array_position(key_at, a.attnum))
                                filter (where a.attnum = any (key_at)),
                            '{}'),
                   coalesce(array_agg(a.name order by array_position(identity_at, a.attnum))
                                filter (where a.attnum = any (identity_at)),
                            '{}'),
                   coalesce(array_agg(a.name) filter (where a.is_hidden), '{}'),
                   -- Do not read a long value that is not shown.
                   bool_and((case when a.atttypid < 16384 then a.atttypid not in (114, 199)
                                  else outbox_internal.capture_is_plain(a.atttypid) end)
                            and not (a.is_hidden and a.attlen < 0))
              into key_columns, identity_columns, hidden, is_plain
              from (select attribute.attnum, attribute.atttypid, attribute.attlen,
                           attribute.attname::text as name,
                           all_hidden or attribute.attgenerated = 'v'  -- not computed in a trigger
                           or case when exclude
                                   then attribute.attnum = any (listed_at)
                                        or attribute.attname = any (listed)
                                   else not attribute.attnum = any (listed_at) end as is_hidden
                      from pg_attribute as attribute
                     where attribute.attrelid = described
                       and attribute.attnum > 0
                       and not attribute.attisdropped) as a;
            if cardinality(key_columns) < cardinality(key_at) then
                key_columns := '{}';  -- a column of the key was dropped
            end if;
            if cardinality(identity_columns) < cardinality(identity_at) then
                identity_columns := '{}';
            end if;
        end if;

        if not is_plain then
            select format('(select to_jsonb(part.*) from (select %s) as part)',
                          string_agg(case when a.atttypid < 16384 and a.atttypid not in (114, 199)
                                          then format('n.%I', a.attname)
                                          else format('%s as %I',
                                                      outbox_internal.capture_expression(
                                                          a.atttypid, format('n.%I', a.attname)),
                                                      a.attname) end,
                                     ', ' order by a.attnum))
              into expression
              from pg_attribute as a
             where a.attrelid = described and a.attnum > 0 and not a.attisdropped
               and (a.attname <> all (hidden) or a.attname = any (key_columns || identity_columns));
        end if;

        -- Three variants: one row, which is the usual case; many rows; many rows that need an
        -- expression.
        if rows = 1 then
            if not is_plain then
                if tg_level = 'ROW' then
                    if tg_op <> 'INSERT' then
                        execute format('select %s from (select ($1).*) as n', expression)
                           into row_before using old;
                    end if;
                    if tg_op <> 'DELETE' then
                        execute format('select %s from (select ($1).*) as n', expression)
                           into row_after using new;
                    end if;
                else
                    if tg_op <> 'INSERT' then
                        execute format('select %s from outbox_before as n', expression)
                           into row_before;
                    end if;
                    if tg_op <> 'DELETE' then
                        execute format('select %s from outbox_after as n', expression)
                           into row_after;
                    end if;
                end if;
            elsif tg_level = 'ROW' then
                if tg_op <> 'INSERT' then row_before := to_jsonb(old.*); end if;
                if tg_op <> 'DELETE' then row_after := to_jsonb(new.*); end if;
            else
                if tg_op <> 'INSERT' then
                    row_before := (select to_jsonb(n.*) from outbox_before as n);
                end if;
                if tg_op <> 'DELETE' then
                    row_after := (select to_jsonb(n.*) from outbox_after as n);
                end if;
            end if;
            if row_before is not null and row_after is not null
               and outbox_internal.capture_key(row_before, identity_columns)
                   is distinct from outbox_internal.capture_key(row_after, identity_columns) then
                befores := array[row_before, null];
                afters  := array[null, row_after];
            else
                befores := array[row_before];
                afters  := array[row_after];
            end if;
            for place in 1 .. cardinality(befores) loop
                payload := outbox_internal.capture_payload(befores[place], afters[place],
                                                           hidden, diff);
                if payload is not null then
                    insert into outbox.events (
                        topic, key, payload, headers, organization, user_id, source)
                    values (
                        prefix || case when befores[place] is null then '.create'
                                       when afters[place] is null then '.delete'
                                       else '.update' end,
                        outbox_internal.capture_key(coalesce(afters[place], befores[place]),
                                                    key_columns),
                        payload, headers, organization, user_id, source);
                end if;
            end loop;

        elsif is_plain and tg_op = 'INSERT' then
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select prefix || '.create', outbox_internal.capture_key(n.held, key_columns),
                   outbox_internal.capture_payload(null, n.held, hidden, diff),
                   headers, organization, user_id, source
              from (select to_jsonb(n.*) as held from outbox_after as n offset 0) as n;

        elsif is_plain and tg_op = 'DELETE' then
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select prefix || '.delete', outbox_internal.capture_key(n.held, key_columns),
                   outbox_internal.capture_payload(n.held, null, hidden, diff),
                   headers, organization, user_id, source
              from (select to_jsonb(n.*) as held from outbox_before as n offset 0) as n;

        elsif is_plain then
            -- PostgreSQL does not tell which old row became which new one, so they are paired by
            -- identity, the primary key. A row whose identity changed counts as deleted and
            -- created. A row may occur twice in a statement (by foreign key cascades); its
            -- occurrences are paired in order. If a column of the identity was dropped, all rows
            -- are paired in order. A full join is never a nested loop.
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select prefix || case when pair.before is null then '.create'
                                  when pair.after is null then '.delete'
                                  else '.update' end,
                   outbox_internal.capture_key(coalesce(pair.after, pair.before), key_columns),
                   pair.payload, headers, organization, user_id, source
              from (select pair.*,
                           outbox_internal.capture_payload(pair.before, pair.after, hidden,
                                                           diff) as payload
                      from (select o.held as before, n.held as after,
                                   coalesce(n.place, o.place) as place
                              from (select o.*, row_number() over (partition by o.identity
                                                                       order by o.place) as time
                                      from (select o.*,
                                                   coalesce(outbox_internal.capture_key(
                                                                o.held, identity_columns),
                                                            o.place::text) collate "C" as identity
                                              from (select to_jsonb(o.*) as held,
                                                           row_number() over () as place
                                                      from outbox_before as o) as o) as o) as o
                              full join
                                   (select n.*, row_number() over (partition by n.identity
                                                                       order by n.place) as time
                                      from (select n.*,
                                                   coalesce(outbox_internal.capture_key(
                                                                n.held, identity_columns),
                                                            n.place::text) collate "C" as identity
                                              from (select to_jsonb(n.*) as held,
                                                           row_number() over () as place
                                                      from outbox_after as n) as n) as n) as n
                                on n.identity = o.identity and n.time = o.time) as pair
                    offset 0) as pair
             where pair.payload is not null
             order by pair.place, pair.after is not null;

        else
            execute format('
                insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
                select $1 || case when pair.before is null then ''.create'' when pair.after is null then ''.delete'' else ''.update'' end,
                       outbox_internal.capture_key(coalesce(pair.after, pair.before), $2), pair.payload, $6, $7, $8, $9
                  from (select pair.*, outbox_internal.capture_payload(pair.before, pair.after, $4, $5) as payload from (%s) as pair offset 0) as pair
                 where pair.payload is not null
                 order by pair.place, pair.after is not null',
                replace(case tg_op
                    when 'INSERT' then
                        'select null::jsonb as before, {row} as after, '
                        'row_number() over () as place from outbox_after as n'
                    when 'DELETE' then
                        'select {row} as before, null::jsonb as after, '
                        'row_number() over () as place from outbox_before as n'
                    else '
                        select o.held as before, n.held as after, coalesce(n.place, o.place) as place
                          from (select n.*, row_number() over (partition by n.identity order by n.place) as time
                                  from (select n.*, coalesce(outbox_internal.capture_key(n.held, $3), n.place::text) collate "C" as identity
                                          from (select {row} as held, row_number() over () as place from outbox_before as n) as n) as n) as o
                          full join (select n.*, row_number() over (partition by n.identity order by n.place) as time
                                  from (select n.*, coalesce(outbox_internal.capture_key(n.held, $3), n.place::text) collate "C" as identity
                                          from (select {row} as held, row_number() over () as place from outbox_after as n) as n) as n) as n
                            on n.identity = o.identity and n.time = o.time'
                    end, '{row}', expression))
            using prefix, key_columns, identity_columns, hidden, diff, headers, organization,
                  user_id, source;
        end if;
    end written;

    if not is_alone then
        perform outbox_internal.capture_in_order(settings ->> 'table', left(tg_op, 1), first,
                                        settings ->> 'topic');
    end if;
    return null;
end;
$_$;

CREATE FUNCTION outbox_internal.capture_expression(kind oid, value text) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $_$
declare
    known  record;
    item   oid;
    fields text;
begin
    if kind = 'pg_catalog.json'::regtype then
        return format('outbox_internal.capture_json(%s)', value);
    elsif outbox_internal.capture_is_plain(kind) then
        return format('to_jsonb(%s)', value);
    end if;
    select t.typtype, t.typbasetype, t.typelem, t.typlen, t.typrelid into known
      from pg_catalog.pg_type as t
     where t.oid = kind;
    if known.typtype = 'd' then
        return outbox_internal.capture_expression(known.typbasetype, value);
    elsif known.typelem <> 0 and known.typlen = -1 then
        item := known.typelem;
        while exists (select from pg_catalog.pg_type as t where t.oid = item and t.typtype = 'd')
        loop
            select t.typbasetype into item from pg_catalog.pg_type as t where t.oid = item;
        end loop;
        if exists (select from pg_catalog.pg_type as t
                    where t.oid = item
                      and t.typtype <> 'c'
                      and t.typelem = 0
                      and item <> 'pg_catalog.json'::regtype) then
            return format('(case when %1$s is not null then '
                          'to_jsonb(format(''%%s'', %1$s)::text[]) end)',
                          value);
        end if;
        return format('(case when %1$s is not null then (select coalesce(jsonb_agg(%2$s), ''[]'') '
                      'from (select unnest(%1$s) as item offset 0) as part) end)',
                      value, outbox_internal.capture_expression(known.typelem, 'part.item'));
    elsif known.typtype = 'c' then
        select string_agg(format('%s as %I',
                                 outbox_internal.capture_expression(a.atttypid,
                                                           format('(%s).%I', value, a.attname)),
                                 a.attname),
                          ', ' order by a.attnum)
          into fields
          from pg_catalog.pg_attribute as a
         where a.attrelid = known.typrelid and a.attnum > 0 and not a.attisdropped;
        return format('(case when %1$s is distinct from null then '
                      '(select to_jsonb(part.*) from (select %2$s) as part) end)',
                      value, fields);
    end if;
    return format('(case when %1$s is not null then to_jsonb(format(''%%s'', %1$s)) end)', value);
end;
$_$;

CREATE FUNCTION outbox_internal.capture_fit(payload jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
declare
    size    bigint := octet_length(payload::text) + 20;
    omitted text[] := '{}';
    large   record;
begin
    if size <= 262144 then
        return payload;
    end if;
    for large in
        select held.key,
               octet_length(held.value::text)
                   + coalesce(octet_length((payload -> 'previous' -> held.key)::text), 0) as size,
               octet_length(to_json(held.key)::text) + 2 as name_size
          from jsonb_each(payload -> 'row') as held
         order by 2 desc, 1
    loop
        exit when size <= 262144;
        omitted := omitted || large.key;
        size := size - large.size + large.name_size;
    end loop;
    return payload || jsonb_build_object('row', (payload -> 'row') - omitted, 'omitted', omitted)
           || case when payload ? 'previous'
                   then jsonb_build_object('previous', (payload -> 'previous') - omitted)
                   else '{}' end;
end;
$$;

CREATE FUNCTION outbox_internal.capture_headers() RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    select case when current_setting('outbox.traceparent', true) <> ''
                     or current_setting('outbox.tracestate', true) <> ''
                then outbox_internal.capture_valid_headers() else '{}' end
$$;

CREATE FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) RETURNS void
    LANGUAGE plpgsql
    AS $_$
declare
    held    text    := current_setting('outbox.capturing_' || relation, true);
    open    text    := substring(held from '[A-Z]*$');
    place   integer := length(open) + 1 - strpos(reverse(open), mine);
    level   text    := length(open);
    around  text    := length(open) - 1;
    marks   jsonb   := '{}';
    behind  bigint;
    began   bigint;
    earlier bigint;
    later   bigint;
    moved   bigint;
begin
    if place is null or place > length(open) then  -- somebody has removed the condition
        return;
    end if;
    begin
        if held <> open then
            marks := left(held, -length(open));
        end if;
        behind := marks -> level ->> 'behind';
        began := marks -> level ->> 'began';
    exception when others then
        marks := '{}';
    end;
    begin
        for earlier in
            select e.position
              from outbox.events as e
             where e.xid = pg_current_xact_id()
               and e.position >= behind
               and e.position < first
               and starts_with(e.topic, prefix || '.')
             order by e.position
        loop
            update outbox.events as e set position = default
             where e.xid = pg_current_xact_id() and e.position = earlier
            returning e.position into later;
            moved := coalesce(moved, later);
        end loop;
    exception when insufficient_privilege then
        moved := null;
    end;
    marks := marks - level;
    if around <> '0' then
        marks := marks || jsonb_build_object(around, case
            when place = length(open)
            then jsonb_build_object('behind', least((marks -> around ->> 'behind')::bigint,
                                                    behind, began, first),
                                    'began', marks -> around -> 'began')
            else jsonb_build_object('behind', least((marks -> around ->> 'behind')::bigint, moved),
                                    'began', least((marks -> around ->> 'began')::bigint,
                                                   began, first)) end);
    end if;
    perform set_config('outbox.capturing_' || relation,
                       case when marks <> '{}' then marks::text else '' end
                           || overlay(open placing '' from place for 1),
                       true);
end;
$_$;

CREATE FUNCTION outbox_internal.capture_is_plain(kind oid) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
declare
    known record;
begin
    if kind < 16384 then
        return kind not in ('pg_catalog.json'::regtype, 'pg_catalog.json[]'::regtype);
    end if;
    select t.typtype, t.typbasetype, t.typelem, t.typlen, t.typrelid, t.typowner into known
      from pg_catalog.pg_type as t
     where t.oid = kind;
    if known.typtype = 'd' then
        return outbox_internal.capture_is_plain(known.typbasetype);
    elsif known.typelem <> 0 and known.typlen = -1 then
        return outbox_internal.capture_is_plain(known.typelem);
    elsif known.typtype = 'c' then
        -- The owner of the type could add an attribute at any time.
        return pg_catalog.pg_has_role(known.typowner, current_user, 'member')
           and not exists (select from pg_catalog.pg_attribute as a
                            where a.attrelid = known.typrelid
                              and a.attnum > 0
                              and not a.attisdropped
                              and not outbox_internal.capture_is_plain(a.atttypid));
    end if;
    return pg_catalog.pg_has_role(known.typowner, current_user, 'member');
end;
$$;

CREATE FUNCTION outbox_internal.capture_json(document json) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
begin
    return document::jsonb;
exception
    when others then
        return to_jsonb(document::text);
end;
$$;

CREATE FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
declare
    key  text;
    part text;
begin
    if cardinality(columns) = 1 then
        key := outbox_internal.capture_text(captured, columns[1]);
    else
        for place in 1 .. cardinality(columns) loop
            part := outbox_internal.capture_text(captured, columns[place]);
            part := replace(replace(part, '%', '%25'), '/', '%2F');
            key := case when place = 1 then part else key || '/' || part end;
        end loop;
    end if;
    if length(key) > 512 then
        key := left(key, 447) || '~' || encode(sha256(convert_to(key, 'UTF8')), 'hex');
    end if;
    return key;
end;
$$;

CREATE FUNCTION outbox_internal.capture_mark(relation oid, operation text) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $_$
    select format('pg_catalog.set_config(%1$L, pg_catalog.concat('
                  'pg_catalog.current_setting(%1$L, true), %2$L), true) is not null',
                  'outbox.capturing_' || relation, upper(left(operation, 1)))
$_$;

CREATE FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) RETURNS smallint[]
    LANGUAGE sql STABLE
    AS $$
    select coalesce(array_agg(a.attnum order by array_position(names, a.attname::text)), '{}')
      from pg_catalog.pg_attribute as a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attname = any (names)
$$;

CREATE FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
declare
    shown    jsonb := coalesce(after, before) - hidden;
    payload  jsonb := jsonb_build_object('row', shown);
    changed  jsonb;
    previous jsonb;
begin
    if before is not null and after is not null then
        before := before - hidden;
        if before = shown then
            return null;
        end if;
        if diff then
            select jsonb_agg(held.key order by held.key collate "C"),
                   jsonb_object_agg(held.key, before -> held.key)
              into changed, previous
              from jsonb_each(shown) as held
             where held.value is distinct from before -> held.key;
            payload := payload || jsonb_build_object('changed', changed, 'previous', previous);
        end if;
    end if;
    -- A few bytes such as 1e131071 can be long as text.
    if pg_column_size(payload) > 8192 or octet_length(payload::text) > 262144 then
        payload := outbox_internal.capture_fit(payload);
    end if;
    return payload;
end;
$$;

CREATE FUNCTION outbox_internal.capture_position() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
begin
    return nextval('outbox.events_position_seq');
exception when insufficient_privilege then
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.capture_setting(name text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select nullif(current_setting(name, true), '')
$$;

CREATE FUNCTION outbox_internal.capture_settings(arguments bytea) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
declare
    settings jsonb;
begin
    settings := convert_from(substring(arguments for length(arguments) - 1),
                             getdatabaseencoding())::jsonb;
    perform (settings ->> 'table')::oid,
            (settings ->> 'exclude')::boolean,
            (settings ->> 'diff')::boolean,
            (settings ->> 'key')::text[],
            (settings ->> 'key_at')::int2[],
            (settings ->> 'identity')::text[],
            (settings ->> 'identity_at')::int2[],
            (settings ->> 'listed')::text[],
            (settings ->> 'listed_at')::int2[],
            (settings ->> 'operations')::text[];
    return case when settings ? 'table' then settings end;
exception when others then
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) RETURNS TABLE(key_column text)
    LANGUAGE sql STABLE
    AS $$
    select case when bool_and(a.atttypid < 16384
                              and a.atttypid not in (114, 199)
                              and a.attgenerated <> 'v')  -- not computed in a trigger
                then max(a.attname::text) filter (where a.attnum = any (key_at)) end
      from pg_catalog.pg_attribute as a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
$$;

CREATE FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select case when length(captured ->> column_name) > 512
                     or strpos(captured ->> column_name, '.') > 0
                then outbox_internal.capture_key(captured, array[column_name])
                else captured ->> column_name end
$$;

CREATE FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select case when strpos(captured ->> column_name, '.') > 0
                     and jsonb_typeof(captured -> column_name) = 'number'
                then trim_scale((captured ->> column_name)::numeric)::text
                else captured ->> column_name end
$$;

CREATE FUNCTION outbox_internal.capture_valid_headers() RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
declare
    headers jsonb := '{}';
    name    text;
    header  text;
begin
    foreach name in array '{traceparent,tracestate}'::text[] loop
        header := current_setting('outbox.' || name, true);
        if header <> '' and length(header) <= 512 and header !~ '[^ -~]' then
            headers := headers || jsonb_build_object(name, header);
        end if;
    end loop;
    return headers;
end;
$$;

CREATE FUNCTION outbox_internal.capture_whole(captured jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    select case when pg_column_size(captured) <= 8000 and octet_length(captured::text) <= 262000
                then jsonb_build_object('row', captured)
                else outbox_internal.capture_payload(null, captured, '{}', false) end
$$;

CREATE FUNCTION outbox_internal.check_config(sink text, config jsonb) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
declare
    wrong record;
    known text := (select string_agg(name, ', ' order by name) from outbox.sinks);
begin
    if not exists (select from outbox.sinks as one where one.name = check_config.sink) then
        raise exception using errcode = '22023',
            message = format('sink: there is no sink %L', sink),
            hint = format('There are %s. A sink of your own program: select '
                          'outbox.declare_sink(%L).',
                          known, sink);
    end if;
    if not exists (select from outbox_internal.sink_fields() as one
                    where one.sink = check_config.sink) then
        return;  -- of another program
    end if;
    select given.field, given.type, one.types into wrong
      from (select held.key as field, jsonb_typeof(held.value) as type
              from jsonb_each(config) as held) as given
      left join outbox_internal.sink_fields() as one
        on one.sink = check_config.sink and one.field = given.field
     where one.field is null or given.type <> all ('null'::text || one.types)
     order by given.field
     limit 1;
    if found then
        raise exception using errcode = '22023',
            message = case when wrong.types is null
                           then format('config.%s: unknown field', wrong.field)
                           else format('config.%s: must be %s, not %s', wrong.field,
                                       array_to_string(wrong.types, ' or '), wrong.type) end,
            hint = (select format('The sink %s has %s.', check_config.sink,
                                  coalesce(string_agg(one.field || case when one.is_required
                                                                        then ' (required)'
                                                                        else '' end,
                                                      ', '),
                                           'no fields'))
                      from outbox_internal.sink_fields() as one
                     where one.sink = check_config.sink);
    end if;
    select one.field into wrong
      from outbox_internal.sink_fields() as one
     where one.sink = check_config.sink
       and one.sink not in ('webhook', 'function')  -- for which the caller has an example
       and one.is_required
       and coalesce(config -> one.field, 'null') = 'null';
    if found then
        raise exception using errcode = '22023',
            message = format('config.%s: is missing', wrong.field),
            hint = format('For example {"%s": "..."}.', wrong.field);
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.check_event_type() RETURNS trigger
    LANGUAGE plpgsql
    AS $_$
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
$_$;

CREATE FUNCTION outbox_internal.check_laggard(laggard text) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    if laggard is null or laggard not in ('keep', 'dead-letter') then
        raise exception using errcode = '22023',
            message = format('laggard: %L is neither keep nor dead-letter', laggard);
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.check_max_rows(max_rows integer) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$
begin
    if max_rows is null or max_rows not between 1 and 100000 then
        raise exception using errcode = '22023',
            message = format('max_rows: %s is not between 1 and 100000',
                             coalesce(max_rows::text, 'null'));
    end if;
    return true;
end;
$$;

CREATE FUNCTION outbox_internal.check_old(what text, period interval) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    if what is null or what not in ('event_ids', 'dead_letters') then
        raise exception using errcode = '22023',
            message = format('what: %L is neither event_ids nor dead_letters', what);
    end if;
    perform outbox_internal.check_period(period);
end;
$$;

CREATE FUNCTION outbox_internal.check_organization_limit() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if new.organization is null or length(new.organization) not between 1 and 255 then
        raise exception using errcode = '22023',
            message = format('organization: %L has not 1 to 255 characters', new.organization),
            hint = 'Name the organization as its events and subscriptions do.';
    end if;
    perform outbox_internal.check_rate(new.rate);
    if tg_op = 'UPDATE' and new.organization <> old.organization then
        raise exception using errcode = '22023',
            message = 'organization: the organization of a limit cannot be changed',
            hint = 'Limit the other organization, and remove the limit of this one.';
    end if;
    new.updated_at := now();
    return new;
end;
$$;

CREATE FUNCTION outbox_internal.check_period(period interval) RETURNS void
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    if period is null or period < interval '1 hour' or period > interval '100 years' then
        raise exception using errcode = '22023',
            message = format('period: %s is not between an hour and 100 years', period);
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.check_rate(rate text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $_$
begin
    if rate !~ '^[1-9][0-9]{0,6}/(s|m|h)$' then
        raise exception using errcode = '22023',
            message = format('rate: %L is not a rate', rate),
            hint = 'Write a number of deliveries and a unit: ''50/s'', ''600/m'' or ''1000/h''; '
                   'null for no limit.';
    end if;
    return true;
end;
$_$;

CREATE FUNCTION outbox_internal.check_replay(id bigint) RETURNS boolean
    LANGUAGE plpgsql STABLE
    AS $$
begin
    if not exists (select from outbox.replays as one where one.id = check_replay.id) then
        raise exception using errcode = '22023',
            message = format('id: there is no replay %s', coalesce(check_replay.id::text, 'null')),
            hint = 'List all: select id, subscription, state from outbox.replay_status.';
    end if;
    return true;
end;
$$;

CREATE FUNCTION outbox_internal.check_subscription() RETURNS trigger
    LANGUAGE plpgsql
    AS $_$
declare
    item text;
    part record;
begin
    new.changed := pg_current_xact_id();
    if tg_op = 'UPDATE' and new.active and not old.active and new.state in ('pending', 'ok') then
        new.state_reason := null;  -- why it was halted
    end if;
    if tg_op = 'UPDATE' then
        if (new.name, new.topics, new.sink, new.config, new.match, new.filter, new.transform,
            new.schema_version, new.organization, new.keys, new.ordering, new.on_exhausted,
            new."coalesce", new.rate, new.retry, new.max_in_flight)
           is not distinct from
           (old.name, old.topics, old.sink, old.config, old.match, old.filter, old.transform,
            old.schema_version, old.organization, old.keys, old.ordering, old.on_exhausted,
            old."coalesce", old.rate, old.retry, old.max_in_flight) then
            -- Only the state changed: a relay must be able to mark a row as invalid.
            if new.active and not old.active and new.resumed_at is not distinct from old.resumed_at
            then
                new.resumed_at := clock_timestamp();
            end if;
            return new;
        end if;
        new.updated_at := now();
        if new.state in ('ok', 'invalid', 'gone') and new.state = old.state then
            new.state := 'pending';  -- a relay checks the changed row
            new.state_reason := null;
        end if;
        new.resumed_at := clock_timestamp();
    end if;

    -- First: everything below reads all of it. What is compressed is written out only if it is
    -- small.
    for part in
        select field.name
          from (values ('config', pg_column_size(new.config), 65536),
                       ('retry', pg_column_size(new.retry), 65536),
                       ('match', pg_column_size(new.match), 65536),
                       ('topics', pg_column_size(new.topics), 65536),
                       ('keys', pg_column_size(new.keys), 524288)) as field (name, size, most)
         where field.size > field.most
    loop
        raise exception using errcode = '22023', message = format('%s: is too large', part.name),
            hint = 'At most 64 KiB, for keys 512 KiB.';
    end loop;
    if octet_length(new.config::text) > 65536 then
        raise exception using errcode = '22023', message = 'config: is too large',
            hint = 'At most 64 KiB.';
    end if;
    if new.name is null or new.name !~ '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$' then
        raise exception using errcode = '22023',
            message = format('name: %L is not a subscription name', new.name),
            hint = 'Use 1 to 100 letters, digits, and _ . : - , beginning with a letter or digit.';
    end if;
    -- Most clients, including relays, support only arrays of one dimension that begin at 1.
    if new.topics is null
       or cardinality(new.topics) not between 1 and 100
       or array_ndims(new.topics) <> 1
       or array_lower(new.topics, 1) <> 1 then
        raise exception using errcode = '22023',
            message = format('topics: subscription %L needs a plain array of 1 to 100 topic '
                             'patterns',
                             new.name),
            hint = 'For example array[''public.orders.*''], or array[''**''] for everything.';
    end if;
    foreach item in array new.topics loop
        if item is null or not outbox_internal.topic_pattern_is_valid(item) then
            raise exception using errcode = '22023',
                message = format('topics: %L is not a topic pattern', item),
                hint = 'Segments are separated by dots and have no blanks; "*" is one segment, '
                       '"**" any number, "ord*" a prefix; a star must be the last character of '
                       'its segment.';
        end if;
    end loop;
    if new.sink is null or new.sink !~ '^[a-z][a-z0-9_-]{0,49}$' then
        raise exception using errcode = '22023',
            message = format('sink: %L is not the name of a sink', new.sink),
            hint = 'For example ''webhook''.';
    end if;
    -- What is owed would be lost, and what is not owed would be missing.
    if tg_op = 'UPDATE' and (new.sink = 'live') <> (old.sink = 'live') then
        raise exception using errcode = '22023',
            message = format('sink: subscription %L has the sink %s, which cannot become %s',
                             new.name, old.sink, new.sink),
            hint = 'Call outbox.unsubscribe(name) first, which drops what is owed to it, or use '
                   'another name.';
    end if;
    if jsonb_typeof(new.config) is distinct from 'object' then
        raise exception using errcode = '22023',
            message = format('config: must be a JSON object, not %s',
                             coalesce(jsonb_typeof(new.config), 'null'));
    end if;
    -- The JSON parser of relays is limited to 127 levels and 64-bit numbers.
    if length(regexp_replace(new.config::text, '[^[{]', '', 'g')) > 120 then
        raise exception using errcode = '22023',
            message = 'config: has more than 120 objects and arrays';
    end if;
    begin
        perform (found.number #>> '{}')::float8
           from jsonb_path_query(new.config, '$.** ? (@.type() == "number")') as found (number);
    exception when numeric_value_out_of_range then
        raise exception using errcode = '22023',
            message = 'config: has a number that is out of range';
    end;
    if tg_op = 'INSERT' or (new.sink, new.config) is distinct from (old.sink, old.config) then
        perform outbox_internal.check_config(new.sink, new.config);
    end if;
    if new.sink = 'webhook' then
        if jsonb_typeof(new.config -> 'url') is distinct from 'string' then
            raise exception using errcode = '22023',
                message = format('config.url: subscription %L (webhook) needs a "url"', new.name),
                hint = 'For example {"url": "https://example.com/hooks", "secret": '
                       '"env:PGOUTBOX_SECRET_SHOP"}.';
        end if;
        if new.config ->> 'url' !~* '^https?://[^[:space:]]+$' then
            raise exception using errcode = '22023',
                message = format('config.url: %L is not an http or https address',
                                 new.config ->> 'url');
        end if;
        if new.config ? 'secret' and exists (
               select from jsonb_path_query(new.config -> 'secret', '$[*]') as secret (reference)
                where jsonb_typeof(reference) <> 'string'
                   or reference #>> '{}' !~ '^(env|file):.+$') then
            raise exception using errcode = '22023',
                message = 'config.secret: must be a reference, not the secret itself',
                hint = 'Write "env:PGOUTBOX_SECRET_NAME" or "file:NAME", or an array of them.';
        end if;
    end if;
    if new.sink = 'function' then
        if jsonb_typeof(new.config -> 'function') is distinct from 'string' then
            raise exception using errcode = '22023',
                message = format('config.function: subscription %L (function) needs a "function"',
                                 new.name),
                hint = 'For example {"function": "shop.on_order"}.';
        end if;
        perform outbox_internal.function_call(new.config ->> 'function');
    end if;
    if new.organization = '' then
        raise exception using errcode = '22023',
            message = 'organization: is empty',
            hint = 'Use null for all organizations.';
    end if;
    -- Check the dimensions first: array_position() fails for several.
    if new.keys is not null
       and (case when cardinality(new.keys) not between 1 and 100
                      or array_ndims(new.keys) <> 1
                      or array_lower(new.keys, 1) <> 1 then true
                 else array_position(new.keys, null) is not null or '' = any (new.keys) end) then
        raise exception using errcode = '22023',
            message = 'keys: must be a plain array of 1 to 100 key prefixes, none empty',
            hint = 'Use null for all keys.';
    end if;
    -- Only a relay can check CEL; `pgoutbox subscriptions test` checks it before it is saved.
    if new.filter ~ '^[[:space:]]*$' or octet_length(new.filter) > 8192 then
        raise exception using errcode = '22023', message = 'filter: must have 1 to 8192 bytes',
            hint = 'Write a CEL expression such as payload.total > 100, or null for all events.';
    end if;
    if new.transform ~ '^[[:space:]]*$' or octet_length(new.transform) > 8192 then
        raise exception using errcode = '22023', message = 'transform: must have 1 to 8192 bytes',
            hint = 'Write a CEL expression such as {"id": payload.id}, or null for the payload as '
                   'it is.';
    end if;
    if new.schema_version < 1 then
        raise exception using errcode = '22023',
            message = format('schema_version: %s is less than 1', new.schema_version),
            hint = 'Use the version of an event type, or null for payloads as they are.';
    end if;
    if octet_length(new.match::text) > 4096 then
        raise exception using errcode = '22023', message = 'match: must have at most 4096 bytes',
            hint = 'Write what the payload must contain, such as {"status": "paid"}, or null for '
                   'all events.';
    end if;
    for part in
        select field.*
          from (values ('ordering', new.ordering, '{none,key}'::text[]),
                       ('on_exhausted', new.on_exhausted, '{skip,park,halt}'),
                       ('coalesce', new."coalesce", '{none,key}')) as field (name, value, known)
         where field.value is null or field.value <> all (field.known)
    loop
        raise exception using errcode = '22023',
            message = format('%s: %L is unknown', part.name, part.value),
            hint = format('Use %s.', array_to_string(part.known, ' or '));
    end loop;
    if new.sink = 'live' then
        perform outbox_internal.refuse_for_channel(field.name)
           from (values ('ordering', new.ordering <> 'none'),
                        ('on_exhausted', new.on_exhausted <> 'skip'),
                        ('coalesce', new."coalesce" <> 'none'),
                        ('rate', new.rate is not null),
                        ('retry', new.retry is distinct from '{}'),
                        ('max_in_flight', new.max_in_flight is not null)) as field (name, is_given)
          where field.is_given;
    end if;
    if new.ordering = 'none' and (new.on_exhausted <> 'skip' or new."coalesce" <> 'none') then
        raise exception using errcode = '22023',
            message = format('%s: needs ordering => ''key''',
                             case when new."coalesce" <> 'none' then 'coalesce'
                                  else 'on_exhausted' end);
    end if;
    perform outbox_internal.check_rate(new.rate);
    if new.max_in_flight is not null and new.max_in_flight not between 1 and 10000 then
        raise exception using errcode = '22023',
            message = format('max_in_flight: %s is not between 1 and 10000', new.max_in_flight);
    end if;
    if jsonb_typeof(new.retry) is distinct from 'object' then
        raise exception using errcode = '22023',
            message = format('retry: must be a JSON object, not %s',
                             coalesce(jsonb_typeof(new.retry), 'null'));
    end if;
    for part in select * from jsonb_each(new.retry) loop
        if part.key in ('initial', 'max', 'max_age', 'disable_after') then
            if jsonb_typeof(part.value) <> 'string'
               or not outbox_internal.duration_is_valid(part.value #>> '{}') then
                raise exception using errcode = '22023',
                    message = format('retry.%s: %s is not a duration', part.key, part.value),
                    hint = 'Write a number and a unit: "500ms", "5s", "10m", "12h", "5d".';
            end if;
            if part.key = 'disable_after' and (part.value #>> '{}')::interval < interval '1 minute'
            then
                raise exception using errcode = '22023',
                    message = format('retry.disable_after: %s is too short', part.value),
                    hint = 'Use at least "1m". Leave it out to go on for ever.';
            end if;
        elsif part.key = 'schedule' then
            if jsonb_typeof(part.value) <> 'array'
               or jsonb_array_length(part.value) not between 1 and 100
               or exists (
                   select from jsonb_array_elements(part.value) as wait (value)
                    where jsonb_typeof(wait.value) <> 'string'
                       or not outbox_internal.duration_is_valid(wait.value #>> '{}')) then
                raise exception using errcode = '22023',
                    message = 'retry.schedule: must be 1 to 100 durations',
                    hint = 'For example ["5s", "5m", "30m", "2h"].';
            end if;
        elsif part.key in ('max_attempts', 'multiplier', 'jitter') then
            if jsonb_typeof(part.value) <> 'number'
               or (part.key = 'max_attempts'
                   -- 5.0 is no whole number to a relay
                   and not (part.value #>> '{}' ~ '^[0-9]+$'
                            and (part.value #>> '{}')::numeric between 1 and 1000))
               or (part.key = 'multiplier' and (part.value #>> '{}')::numeric not between 1 and 100)
               or (part.key = 'jitter' and (part.value #>> '{}')::numeric not between 0 and 1) then
                raise exception using errcode = '22023',
                    message = format('retry.%s: %s is out of range', part.key, part.value),
                    hint = 'max_attempts is a whole number from 1 to 1000, multiplier 1 to 100, '
                           'jitter 0 to 1.';
            end if;
        else
            raise exception using errcode = '22023',
                message = format('retry.%s: unknown key', part.key),
                hint = 'Known keys: max_attempts, initial, multiplier, max, jitter, max_age, '
                       'schedule, disable_after.';
        end if;
    end loop;
    if new.retry ? 'schedule'
       and new.retry ?| array['initial', 'multiplier', 'max', 'max_attempts'] then
        raise exception using errcode = '22023',
            message = 'retry.schedule: cannot be combined with initial, multiplier, max or '
                      'max_attempts',
            hint = 'The schedule sets the number of attempts and the waits.';
    end if;
    return new;
end;
$_$;

CREATE FUNCTION outbox_internal.check_topic_pattern(pattern text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
begin
    if not outbox_internal.topic_pattern_is_valid(pattern) then
        raise exception using errcode = '22023',
            message = format('topic: %L is not a topic pattern', pattern),
            hint = 'Segments are separated by dots and have no blanks; "*" is one segment, "**" '
                   'any number, "ord*" a prefix; a star must be the last character of its '
                   'segment.';
    end if;
    return true;
end;
$$;

CREATE FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $_$
declare
    asked record;
    old   tid[];
begin
    -- First: what is chosen is seen by the check that follows.
    execute format('select array_agg(one.ctid) from (select event.ctid from %2$s as event '
                   'where event.%1$I < $1 %3$s limit 5000 for update skip locked) as one', key,
                   rest,
                   case when log = 'events' then 'and ($2 is null or event.xid < $2)' else '' end)
       into old
      using until, mark;
    if old is null then
        return;
    end if;
    if log = 'events' then
        select * into asked from outbox_internal.last_asked();
        reason := outbox_internal.kept_by(rest, '-infinity', until, laggard, null);
        if reason is not null then
            if laggard = 'dead-letter' then
                rows := outbox_internal.copy_owed(rest, '-infinity', until, until);
                done := case when rows > 0 then 'copied' end;
            end if;
            return;
        end if;
        -- A redrive puts back what it does not find: until the rows are gone it waits.
        perform pg_advisory_xact_lock(7411006);
        if outbox_internal.was_asked_since(asked.delivery, asked.waiting, asked.page, asked.replay,
                                           asked.subscription, '-infinity', until) then
            raise exception using errcode = '55P03', message = 'it was asked for meanwhile';
        end if;
    end if;
    execute format('delete from %s as one where one.ctid = any ($1)', rest) using old;
    get diagnostics rows = row_count;
    done := case when rows > 0 then 'deleted' end;
end;
$_$;

CREATE FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) RETURNS text
    LANGUAGE plpgsql
    AS $$
declare
    parent  text := format('outbox.%I', log);
    renamed text := format('%s_until_%s', log,
                           to_char(border at time zone 'UTC', 'YYYYMMDD"t"HH24MI'));
begin
    -- A standby that confirms commits late must not make publishers wait: nothing is lost with it.
    perform set_config('synchronous_commit', 'local', true);
    execute format('lock table only %s in access exclusive mode', parent);
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('alter table %s detach partition %s', parent, rest);
    execute format('alter table %s rename to %I', rest, renamed);
    execute format('alter table %s attach partition %s for values from (minvalue) to (%L)',
                   parent, rest, border);
    perform outbox_internal.unfence(rest);
    execute format('create table outbox.%I partition of %s default', log || '_default', parent);
    perform outbox_internal.finish_partition(
                to_regclass(format('outbox.%I', log || '_default')), log);
    return renamed;
end;
$$;

CREATE FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql
    SET enable_seqscan TO 'on'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $_$
declare
    subscriptions bigint[];
    those         bigint[];
    attempts      integer[];
    replays       bigint[];
    waiting_row   outbox.backlog;
    whole         int8multirange;
    ids           bigint[];
    keys          text[];
    buried        bigint;
begin
    execute format($f$
        with dying as (
            delete from outbox.deliveries as delivery
             where delivery.id = any (array(
                       select one.id from outbox.deliveries as one
                        where one.created_at >= $1 and one.created_at < $2
                          and one.owed_since < $3
                          and (one.lease_token is null or one.due_at < clock_timestamp())
                          and exists (select from %s as event
                                       where event.position = one.position)
                        order by one.id
                        limit 500
                          for update skip locked))
            returning delivery.subscription_id, delivery.position, delivery.attempt,
                      delivery.replay_id
        )
        select array_agg(dying.subscription_id), array_agg(dying.position),
               array_agg(dying.attempt), array_agg(dying.replay_id)
          from dying$f$, part)
       into subscriptions, those, attempts, replays
      using low, high, owed_before;
    if those is null then
        execute format('select int8multirange(int8range(min(event.position), max(event.position), '
                       '%L)) from %s as event', '[]', part)
           into whole;
        for waiting_row in
            select waiting.* from outbox.backlog as waiting
             where waiting.created_from < high and waiting.created_until >= low
               and waiting.owed_since < owed_before
               and waiting.positions && whole
             order by waiting.id
               for update skip locked
        loop
            execute format('select array_agg(event.position) from (select one.position '
                           'from unnest($1) as span '
                           'cross join lateral (select event.position, event.created_at '
                           'from %s as event where event.position >= lower(span) '
                           'and event.position < upper(span) '
                           'and event.created_at >= $2 and event.created_at < $3 '
                           'order by event.position limit 500) as one '
                           'order by one.position limit 500) as event', part)
               into those
              using waiting_row.positions * whole, low, high;
            continue when those is null;
            update outbox.backlog as waiting
               set positions = waiting.positions
                               - (select range_agg(int8range(at, at, '[]'))
                                    from unnest(those) as at)
             where waiting.id = waiting_row.id;
            delete from outbox.backlog as waiting
             where waiting.id = waiting_row.id and isempty(waiting.positions);
            subscriptions := array_fill(waiting_row.subscription_id, array[cardinality(those)]);
            attempts := array_fill(0, array[cardinality(those)]);
            replays := array_fill(null::bigint, array[cardinality(those)]);
            exit;
        end loop;
    end if;
    if those is null then
        return 0;
    end if;
    execute format($f$
        with buried as (
            insert into outbox.dead_letters (
                subscription_id, subscription, reason, attempts, event_id, position, created_at,
                topic, key, payload, headers, organization, source, user_id, priority,
                schema_version, replay_id)
            select owed.subscription_id, subscription.name, 'retention', owed.attempt, event.id,
                   event.position, event.created_at, event.topic, event.key, event.payload,
                   event.headers, event.organization, event.source, event.user_id, event.priority,
                   event.schema_version, owed.replay_id
              from unnest($1, $2, $3, $4)
                   as owed (subscription_id, "position", attempt, replay_id)
              join outbox.subscriptions as subscription on subscription.id = owed.subscription_id
              join %s as event on event.position = owed.position
             order by event.position
            returning id, subscription_id, key
        ),
        ordered as (
            select buried.*, subscription.on_exhausted
              from buried
              join outbox.subscriptions as subscription
                on subscription.id = buried.subscription_id and subscription.ordering = 'key'
             where buried.key is not null
        ),
        parked as (
            insert into outbox.parked_keys (subscription_id, key, dead_letter_id)
            select ordered.subscription_id, ordered.key, ordered.id
              from ordered
             where ordered.on_exhausted = 'park'
             order by ordered.id
            on conflict do nothing
        )
        select (select array_agg(ordered.subscription_id) from ordered),
               (select array_agg(ordered.key) from ordered),
               (select count(*) from buried)$f$, part)
       into ids, keys, buried
      using subscriptions, those, attempts, replays;
    -- What a deleted subscription was owed is owed no more. Nothing else may be lost.
    if buried < (select count(*)
                   from unnest(subscriptions) as owed (id)
                   join outbox.subscriptions as subscription on subscription.id = owed.id) then
        raise exception 'of % deliveries only % became dead letters', cardinality(those), buried;
    end if;
    perform outbox_internal.promote_keys(ids, keys);
    return cardinality(those);
end;
$_$;

CREATE FUNCTION outbox_internal.count_positions(positions int8multirange) RETURNS bigint
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select coalesce(sum(upper(span) - lower(span)), 0)::bigint from unnest(positions) as span
$$;

CREATE FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
declare
    part record;
begin
    top := '-infinity';
    beyond := 'infinity';
    for part in select one.* from outbox_internal.log_partitions(log) as one
                 where one.high > at order by one.low loop
        if part.low <= greatest(top, at) then
            top := greatest(top, part.high);
        else
            beyond := part.low;
            return;
        end if;
    end loop;
    if top = '-infinity' then
        -- the last of those that are past
        select coalesce(max(one.high), '-infinity') into top
          from outbox_internal.log_partitions(log) as one where one.high <= at;
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.declare_handler(name text, topics text[]) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    subscription_id bigint;
    taken_by        text;
begin
    select existing.id, existing.sink into subscription_id, taken_by
      from outbox.subscriptions as existing
     where existing.name = declare_handler.name;
    if taken_by <> 'handler' then
        raise exception using errcode = '22023',
            message = format('name: subscription %L has the sink %L; use another name for the '
                             'handler',
                             declare_handler.name, taken_by);
    end if;
    if subscription_id is null then
        return outbox.subscribe(name => declare_handler.name,
                                topics => declare_handler.topics,
                                sink => 'handler',
                                config => jsonb_build_object('handler', declare_handler.name));
    end if;
    update outbox.subscriptions as existing set topics = declare_handler.topics
     where existing.id = subscription_id
       and existing.topics is distinct from declare_handler.topics;
    return subscription_id;
end;
$$;

COMMENT ON FUNCTION outbox_internal.declare_handler(name text, topics text[]) IS 'Called by programs with handlers when their relay starts. Creates the subscription or updates its topics. Returns the id.';

CREATE FUNCTION outbox_internal.delete_old(what text, period interval, after timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.check_old(what, period);
    rows := 0;
    if outbox_internal.is_steady(what, now()) then
        select deleted.* into rows, newest
          from outbox_internal.delete_old_at(what, period, after, now()) as deleted;
    end if;
    -- Last: other relays wait for this row.
    perform outbox_internal.note_period(what, period, null, now(), null);
end;
$$;

COMMENT ON FUNCTION outbox_internal.delete_old(what text, period interval, after timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) IS 'Delete event_ids or dead letters that are older than the period, 5,000 at most. Called by relays.';

CREATE FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
declare
    gone bigint[];
begin
    perform outbox_internal.check_old(what, period);
    if what = 'event_ids' then
        with old as (
            delete from outbox.event_ids as one
             where one.id = any (array(
                       select given.id from outbox.event_ids as given
                        where given.created_at >= coalesce(after, '-infinity')
                          and given.created_at < at - period
                        order by given.created_at
                        limit 5000
                          for update skip locked))
            returning one.created_at
        )
        select count(*), max(old.created_at) into rows, newest from old;
    else
        with old as (
            delete from outbox.dead_letters as one
             where one.id = any (array(
                       select letter.id from outbox.dead_letters as letter
                        where letter.died_at >= coalesce(after, '-infinity')
                          and letter.died_at < at - period
                        order by letter.died_at, letter.id
                        limit 5000
                          for update skip locked))
            returning one.died_at, one.id
        )
        select count(*), max(old.died_at), array_agg(old.id) into rows, newest, gone from old;
        perform outbox_internal.unpark(gone);
        if rows > 0 then
            perform pg_notify('outbox_doorbell', 'due');  -- keys that were parked go on
        end if;
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $_$
declare
    asked   record;
    highest xid8;
    newest  timestamptz;
    last    bigint;
begin
    -- Nothing is written to it from here on, so what is checked stays true. Its time is long past:
    -- no publisher waits for this.
    execute format('lock table only %s in share mode', part);
    if log = 'events' then
        select * into asked from outbox_internal.last_asked();
        reason := outbox_internal.kept_by(part, low, high, laggard, mark);
        if reason is not null then
            return;
        end if;
        execute format('select (select one.xid from %1$s as one order by one.xid desc limit 1), '
                       '(select max(one.created_at) from %1$s as one), '
                       '(select max(one.position) from %1$s as one)', part)
           into highest, newest, last;
    end if;
    perform set_config('synchronous_commit', 'local', true);
    if log = 'events' then
        perform outbox_internal.forget_events(highest, newest, last);
    end if;
    emptied := not may_lock;
    if may_lock then
        begin
            execute format('lock table only %s in access exclusive mode', parent);
            -- dropping a partition takes it, too, and everybody waits already
            if rest is not null then
                execute format('lock table only %s in access exclusive mode nowait', rest);
            end if;
        exception when lock_not_available or deadlock_detected then
            emptied := true;
        end;
    end if;
    if emptied then
        -- who asks for its events reads it first: such a transaction has ended, or waits
        execute format('lock table only %s in access exclusive mode', part);
    end if;
    if log = 'events' then
        -- It needed to read the log, which nobody does now.
        if outbox_internal.was_asked_since(asked.delivery, asked.waiting, asked.page, asked.replay,
                                           asked.subscription, low, high) then
            raise exception using errcode = '55P03', message = 'it was asked for meanwhile';
        end if;
    end if;
    if emptied then
        if pg_relation_size(part) > 0 then
            execute format('truncate table only %s', part);
        end if;
        reason := 'a lock: its events have left, and it waits until nobody uses the log for a '
                  'moment';
    else
        execute format('drop table %s', part);
    end if;
end;
$_$;

CREATE FUNCTION outbox_internal.drop_partition(log text, period interval, laggard text, OUT done text, OUT partition text, OUT rows bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.log_column(log, period);
    perform outbox_internal.check_laggard(laggard);
    if outbox_internal.is_steady(log, now()) then
        select dropped.* into done, partition, rows
          from outbox_internal.drop_partition_at(log, period, laggard, now()) as dropped;
    end if;
end;
$$;

COMMENT ON FUNCTION outbox_internal.drop_partition(log text, period interval, laggard text, OUT done text, OUT partition text, OUT rows bigint) IS 'Drop the oldest partition that is older than the period and that nothing is owed of. Called by relays.';

CREATE FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    SET "DateStyle" TO 'ISO'
    SET "TimeZone" TO 'UTC'
    SET enable_seqscan TO 'on'
    SET enable_bitmapscan TO 'on'
    AS $$
declare
    key    name := outbox_internal.log_column(log, period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   record;
    mark   xid8;
    part   record;
    reason text;
    emptied boolean;
    may_lock boolean := true;
    was_empty boolean;
    locked name;  -- the first partition of which a lock was not to be had
    left_empty name;  -- the first that was emptied
begin
    perform outbox_internal.check_laggard(laggard);
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    if log = 'events' then
        if not exists (select from outbox.retention_marks as known
                        where known.at > drop_partition_at.at
                                         - outbox_internal.partition_width(period) / 4) then
            insert into outbox.retention_marks
            values (drop_partition_at.at, pg_snapshot_xmax(pg_current_snapshot()))
            on conflict do nothing;
        end if;
        select known.xid into mark from outbox.retention_marks as known
         where known.at <= drop_partition_at.at - period
         order by known.at desc limit 1;
        delete from outbox.retention_marks as known
         where known.at < drop_partition_at.at - period
                          - outbox_internal.partition_width(period)
            or known.at > drop_partition_at.at;  -- the clock was ahead
    end if;
    select class.oid::regclass as relation, class.relname into rest
      from pg_partitioned_table as tree
      join pg_class as class on class.oid = tree.partdefid
     where tree.partrelid = parent;
    delete from outbox.retention_kept as kept
     where kept.log = drop_partition_at.log
       and kept.partition is distinct from rest.relname
       and not exists (select from outbox_internal.log_partitions(drop_partition_at.log) as one
                         join pg_class as class on class.oid = one.relation
                        where class.relname = kept.partition
                          and one.high <= drop_partition_at.at - period);

    for part in
        select one.relation, one.low, one.high, class.relname
          from outbox_internal.log_partitions(log) as one
          join pg_class as class on class.oid = one.relation
         where one.is_plain and one.high <= drop_partition_at.at - period
         order by one.high
    loop
        partition := part.relname;
        begin
            was_empty := pg_relation_size(part.relation) = 0;
            select dropped.reason, dropped.emptied into reason, emptied
              from outbox_internal.drop_if_settled(log, parent, rest.relation, part.relation,
                                                   part.low, part.high, laggard, mark, may_lock)
                   as dropped;
            if reason is null then
                delete from outbox.retention_kept as kept where kept.partition = part.relname;
                done := 'dropped';
                return;
            end if;
            if emptied then
                may_lock := false;
                locked := coalesce(locked, part.relname);
                left_empty := coalesce(left_empty,
                                       case when not was_empty then part.relname end);
            elsif laggard = 'dead-letter' then
                rows := outbox_internal.copy_owed(part.relation, part.low, part.high, at - period);
                done := case when rows > 0 then 'copied' end;
            end if;
        exception
            when lock_not_available or deadlock_detected then
                reason := 'a lock: ' || sqlerrm;
                locked := coalesce(locked, part.relname);
            when others then
                reason := 'an error: ' || sqlerrm;
        end;
        perform outbox_internal.note_kept(log, part.relname, at, reason);
        if done is not null then
            return;
        end if;
    end loop;
    if left_empty is not null then
        done := 'emptied';
        partition := left_empty;
        return;
    end if;
    partition := null;
    if rest.relation is null then
        return;
    end if;

    -- What lies in the default partition: of a time for which no relay had made one, or put back.
    partition := rest.relname;
    begin
        select cleaned.done, cleaned.reason, cleaned.rows into done, reason, rows
          from outbox_internal.clean_default(log, rest.relation, key, at - period, laggard, mark)
               as cleaned;
    exception
        when lock_not_available or deadlock_detected then
            reason := 'a lock: ' || sqlerrm;
            locked := coalesce(locked, rest.relname);
        when others then
            reason := 'an error: ' || sqlerrm;
    end;
    if reason is null then
        delete from outbox.retention_kept as kept where kept.partition = rest.relname;
    else
        perform outbox_internal.note_kept(log, rest.relname, at, reason);
    end if;
    if done is null and locked is not null then
        done := 'locked';
        partition := locked;
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.duration_is_valid(duration text) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $_$
    select case when duration ~ '^[0-9]+([.][0-9]+)?(ms|s|m|h|d)$'
                then rtrim(duration, 'mshd')::numeric
                     * case substring(duration from '[a-z]+$')
                            when 'ms' then 0.001
                            when 's' then 1
                            when 'm' then 60
                            when 'h' then 3600
                            else 86400 end
                     <= 10 * 366 * 86400
                else false end
$_$;

CREATE FUNCTION outbox_internal.explain_event(event outbox.events, named text DEFAULT NULL::text, refusals jsonb DEFAULT NULL::jsonb) RETURNS TABLE(subscription_id bigint, subscription text, status text, reason text, waits_for text, until timestamp with time zone, attempts integer, last_attempt_at timestamp with time zone, detail jsonb)
    LANGUAGE sql STABLE
    SET jit TO 'off'
    SET enable_nestloop TO 'off'
    AS $$
    with owed as materialized (
        select delivery.subscription_id, 'delivery' as place, delivery.owed_since, delivery.due_at,
               delivery.key as ordered_key, delivery.replay_id,
               delivery.lease_token is not null as was_leased, delivery.attempt as attempts,
               -- rows do not say who leased them
               (select case when count(*) = 1 then min(relay.name) end
                  from outbox.relays as relay
                 where relay.seen_at > now() - interval '1 minute') as relay,
               false as is_suspect
          from outbox.deliveries as delivery
         where delivery.position = (explain_event.event).position
        union all
        select pair.subscription_id, 'page', page.owed_since[1], page.due_at, null, null, true, 0,
               page.relay,
               page.deaths > 0
          from outbox.pages as page
         cross join lateral outbox_internal.left_of(page) as pair
         where (explain_event.event).created_at between page.created_from and page.created_until
           and exists (select from unnest(page.owed) as positions
                        where positions @> (explain_event.event).position)
           and pair.position = (explain_event.event).position
        union all
        select backlog.subscription_id, 'backlog', backlog.owed_since, null, null, null, false, 0,
               null,
               backlog.deaths > 0
          from outbox.backlog as backlog
         where backlog.positions @> (explain_event.event).position
           and (explain_event.event).created_at between backlog.created_from
                                                    and backlog.created_until
    ),
    -- after a lost lease there may be two
    waiting as materialized (
        select distinct on (one.subscription_id)
               one.*, one.was_leased and one.due_at > now() as is_held
          from owed as one
         order by one.subscription_id, one.was_leased and one.due_at > now() desc, one.due_at
    ),
    tried as materialized (
        select distinct on (attempt.subscription_id)
               attempt.subscription_id, attempt.at, attempt.reason, attempt.status, attempt.answer,
               attempt.outcome,
               max(attempt.attempt) over attempts_of as attempts,
               max(attempt.at) filter (where attempt.outcome = 'delivered') over attempts_of
                   as delivered_at
          from outbox.attempts as attempt
         where attempt.position = (explain_event.event).position
           and attempt.at >= (explain_event.event).created_at
           and coalesce(attempt.event_id = (explain_event.event).id, true)
        window attempts_of as (partition by attempt.subscription_id)
         order by attempt.subscription_id, attempt.at desc
    ),
    letters as materialized (
        select distinct on (letter.subscription_id)
               letter.id, letter.subscription_id, letter.subscription, letter.reason,
               letter.status, letter.answer, letter.attempts, letter.event_id, letter.died_at
          from outbox.dead_letters as letter
         where letter.position = (explain_event.event).position
           and coalesce(letter.event_id = (explain_event.event).id, true)
         order by letter.subscription_id, letter.id desc
    ),
    breakers as materialized (
        select report.subscription_id, jsonb_agg(report.relay order by report.relay) as relays
          from outbox.relay_subscriptions as report
          join outbox.relays as relay
            on relay.name = report.relay
           and relay.seen_at > now() - interval '1 minute'
         where report.breaker <> 'closed'
         group by report.subscription_id
    ),
    known as (
        select one.id, one.name, one as row from outbox.subscriptions as one
        union all
        -- those that were deleted
        select gone.subscription_id, min(gone.name), null
          from (select letter.subscription_id, letter.subscription as name from letters as letter
                union all
                select attempt.subscription_id, null from tried as attempt) as gone
         where not exists (select from outbox.subscriptions as one
                            where one.id = gone.subscription_id)
         group by gone.subscription_id
    ),
    facts as materialized (
        select known.id, known.name,
               known.row is null as is_deleted, (known.row).active, (known.row).state,
               (known.row).state_reason,
               case when (known.row).updated_at > (explain_event.event).created_at
                         and (known.row).updated_at > (known.row).created_at
                    then (known.row).updated_at end as changed_at,
               coalesce((known.row).sink = 'live', false) as is_channel,
               (known.row).state = 'gone'
                   and (explain_event.event).position
                       > coalesce((known.row).owed_until, 0) as is_after_gone,
               waiting.place, waiting.owed_since, waiting.due_at, waiting.was_leased,
               waiting.is_held, waiting.is_suspect, waiting.relay,
               waiting.attempts as attempts_of_row,
               letter.id as letter_id, letter.reason as letter_reason,
               letter.status as letter_status, letter.answer as letter_answer,
               letter.attempts as letter_attempts, letter.event_id is not null as is_redrivable,
               letter.died_at,
               tried.at as tried_at, tried.reason as tried_reason, tried.status as tried_status,
               tried.answer as tried_answer, tried.attempts as attempts_tried, tried.delivered_at,
               tried.outcome as tried_outcome, waiting.replay_id,
               waiting.place is not null
                   and exists (select from outbox.parked_keys as parked
                                where parked.subscription_id = known.id
                                  and parked.key = (explain_event.event).key) as is_parked,
               waiting.ordered_key is not null
                   and waiting.due_at >= outbox_internal.never() as is_behind,
               pause.until as paused_until, breakers.relays as breakers,
               case when known.row is null then null
                    when explain_event.refusals is null
                    then outbox_internal.refusal(known.row, explain_event.event)
                    else explain_event.refusals -> known.id::text ->> 0 end as refusal,
               explain_event.refusals -> known.id::text ->> 1 as part,
               -- of a subscription with a start: the backfill has not come to it
               exists (select from outbox.starts as start
                        where start.subscription_id = known.id
                          and (explain_event.event).position > start.position
                          and (start.since is null
                               or (explain_event.event).created_at >= start.since)
                          and ((explain_event.event).xid is null or start.settled is null
                               or pg_visible_in_snapshot((explain_event.event).xid, start.settled)
                               or coalesce(pg_visible_in_snapshot((explain_event.event).xid,
                                                                  start.window_end)
                                           and (explain_event.event).position
                                               <= start.page_after, false)))
                   as is_starting,
               coalesce((explain_event.event).created_at < (known.row).created_at
                        and coalesce((explain_event.event).created_at < beginning.starts_at, true)
                        and case when (explain_event.event).xid is null or beginning.settled is null
                                 then true  -- only the times are known
                                 else pg_visible_in_snapshot((explain_event.event).xid,
                                                             beginning.settled)
                                      or coalesce(pg_visible_in_snapshot((explain_event.event).xid,
                                                                         beginning.window_end)
                                                  and (explain_event.event).position
                                                      <= beginning.page_after, false) end,
                        false) as is_before_start
          from known
          left join waiting on waiting.subscription_id = known.id
          left join letters as letter on letter.subscription_id = known.id
          left join tried on tried.subscription_id = known.id
          left join breakers on breakers.subscription_id = known.id
          left join outbox.asked_pauses as pause on pause.subscription_id = known.id
          left join outbox.beginnings as beginning on beginning.subscription_id = known.id
         where explain_event.named is null or known.name = explain_event.named
    ),
    judged as (
        select facts.*,
               -- the first that holds
               case
               when facts.is_held then 'in_flight'
               when facts.place is not null and facts.state = 'gone' then 'gone'
               when facts.place is not null and facts.state = 'disabled' then 'disabled'
               when facts.place is not null and not facts.active then 'paused'
               when facts.place is not null and facts.state = 'invalid' then 'invalid'
               when facts.is_parked then 'parked'
               when facts.is_behind then 'behind_key'
               when facts.due_at > now() and facts.owed_since > now() then 'scheduled'
               -- its own wait and the pause are counted from two moments
               when facts.place is not null
                    and facts.paused_until
                        >= coalesce(facts.due_at, '-infinity') - interval '10 seconds'
               then 'paused_by_destination'
               when facts.due_at > now() then 'retrying'
               when facts.is_suspect then 'suspect'
               when facts.was_leased then 'lease_ended'
               when facts.place is not null and facts.breakers is not null then 'breaker_open'
               when facts.place = 'backlog' then 'backlog'
               when facts.place is not null then 'due'
               when facts.tried_outcome = 'superseded' then 'superseded'
               when facts.letter_reason = 'expired' then 'expired'
               when facts.letter_reason in ('relay_killed', 'event_unreadable') then 'quarantined'
               when facts.letter_id is not null then 'dead_letter'
               when facts.delivered_at is not null then 'delivered'
               when facts.is_deleted then 'deleted'
               when facts.refusal = 'failed' then 'condition_failed'
               when facts.refusal <> 'filter_unknown' then 'unwanted'
               when facts.is_channel and facts.refusal is null then 'channel'
               when facts.is_channel then 'unknown'
               when facts.is_after_gone then 'after_gone'
               when not outbox_internal.is_routed(explain_event.event) then 'not_routed'
               when facts.is_starting then 'backfill'
               when facts.is_before_start then 'before_start'
               when facts.refusal = 'filter_unknown' then 'unknown'
               else 'settled'
               end as status
          from facts
    )
    select judged.id, judged.name, judged.status,
           case when judged.status = 'unwanted' then judged.refusal
                when judged.status = 'condition_failed' then judged.part
                when judged.status in ('gone', 'after_gone', 'disabled', 'invalid', 'paused')
                then judged.state_reason
                when judged.status in ('expired', 'quarantined', 'dead_letter')
                then judged.letter_reason
                when judged.status <> 'delivered' then judged.tried_reason end,
           case when judged.status in ('due', 'backlog', 'suspect', 'lease_ended', 'breaker_open',
                                       'not_routed', 'backfill')
                     and not exists (select from outbox.relays as relay
                                      where relay.seen_at > now() - interval '1 minute')
                then 'a running relay'
                else case judged.status
                     when 'in_flight' then 'an answer, or the end of the lease'
                     when 'gone' then 'outbox.resume()'
                     when 'disabled' then 'outbox.resume()'
                     when 'paused' then 'outbox.resume()'
                     when 'invalid' then 'a correction of the subscription'
                     when 'parked' then 'a redrive or discard of what parked its key'
                     when 'behind_key' then 'an earlier event of its key'
                     when 'scheduled' then 'its time'
                     when 'paused_by_destination' then 'the end of the pause'
                     when 'retrying' then 'its next attempt'
                     when 'suspect' then 'its turn'
                     when 'lease_ended' then 'a relay that takes it over'
                     when 'breaker_open' then 'a probe that succeeds'
                     when 'backlog' then 'room for its subscription'
                     when 'due' then 'its turn'
                     when 'not_routed' then 'a relay that routes it'
                     when 'backfill' then 'the backfill'
                     end end,
           case when judged.status in ('in_flight', 'scheduled', 'retrying') then judged.due_at
                when judged.status = 'paused_by_destination'
                then greatest(judged.paused_until, judged.due_at)
                when judged.status = 'not_routed'
                     and (explain_event.event).deliver_after > now()
                then (explain_event.event).deliver_after end,
           greatest(judged.attempts_of_row - judged.is_held::integer, judged.letter_attempts,
                    judged.attempts_tried, 0),
           judged.tried_at,
           jsonb_strip_nulls(jsonb_build_object(
               'condition', judged.refusal,
               'part', judged.part,
               'place', judged.place,
               'owed_since', judged.owed_since,
               'due_at', nullif(judged.due_at, outbox_internal.never()),
               'replay', judged.replay_id,
               'relay', case when judged.is_held then judged.relay end,
               'breakers', judged.breakers,
               'paused_until', judged.paused_until,
               'dead_letter', judged.letter_id,
               'died_at', judged.died_at,
               'is_redrivable', case when judged.letter_id is not null and not judged.is_deleted
                                     then judged.is_redrivable end,
               'http_status', coalesce(judged.letter_status, judged.tried_status),
               'answer', coalesce(judged.letter_answer, judged.tried_answer),
               'delivered_at', judged.delivered_at,
               'changed_at', judged.changed_at,
               'is_deleted', nullif(judged.is_deleted, false)))
      from judged
     order by judged.name nulls last, judged.id
$$;

CREATE FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    -- The trigger first: no insert can come in between, for both need the lock of the table.
    execute format('lock table only %s in access exclusive mode', rest);
    execute format('create trigger retention_fence before insert on %s for each row '
                   'execute function outbox_internal.stay_before_fence(%L, %L)', rest, key, fence);
    execute format('alter table %s add constraint retention_fence check (%I < %L) not valid',
                   rest, key, fence);
    execute format('comment on constraint retention_fence on %s is %L', rest, fence);
end;
$$;

CREATE FUNCTION outbox_internal.find_event(event uuid) RETURNS TABLE("position" bigint, created_at timestamp with time zone, xid xid8)
    LANGUAGE sql STABLE
    AS $$
    with id as (
        select given.at,
               coalesce(given.at, to_timestamp(given.milliseconds / 1000.0)) as near,
               given.at is not null or given.version = '7' as is_dated
          from (select (select known.created_at
                          from outbox.event_ids as known
                         where known.id = find_event.event) as at,
                       ('x' || left(replace(find_event.event::text, '-', ''), 12))::bit(48)::bigint
                           as milliseconds,
                       substring(find_event.event::text from 15 for 1) as version) as given
    )
    select found.position, found.created_at, found.xid
      from (select one.position, one.created_at, one.xid
              from id
              join outbox.events as one
                on one.created_at between id.near - interval '1 hour' and id.near + interval '1 day'
             where one.id = find_event.event
            union all
            select one.position, one.created_at, one.xid
              from outbox.events as one
             where one.id = find_event.event
               and not (select id.is_dated from id)) as found
     limit 1
$$;

CREATE FUNCTION outbox_internal.finish_partition(part regclass, log text) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare
    owner name := (select pg_get_userbyid(class.relowner) from pg_class as class
                    where class.oid = to_regclass(format('outbox.%I', log)));
begin
    -- so that a publication for all tables forbids no delete
    execute format('alter table %s replica identity full', part);
    if log = 'events' then
        perform outbox_internal.watch_partition(part);
    end if;
    if owner <> current_user then
        execute format('alter table %s owner to %I', part, owner);
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) RETURNS int8multirange
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select coalesce(range_agg(int8range(lower(part.span),
                                        least(upper(part.span),
                                              lower(part.span) + wanted - part.before))),
                    '{}')
      from (select span,
                   coalesce(sum(upper(span) - lower(span))
                                over (order by span
                                       rows between unbounded preceding and 1 preceding),
                            0)::bigint as before
              from unnest(positions) as span) as part
     where part.before < wanted
$$;

CREATE FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) RETURNS bigint
    LANGUAGE plpgsql STABLE
    AS $$
declare
    at bigint;
begin
    foreach at in array first_unreadable.positions loop
        begin
            perform octet_length(event.payload::text), octet_length(event.headers::text),
                    octet_length(concat(event.topic, event.key, event.organization, event.source,
                                        event.user_id))
               from outbox.events as event
              where event.position = at
                and event.created_at between created_from and created_until;
        exception
            when data_exception or program_limit_exceeded or internal_error then return at;
        end;
    end loop;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.follow_ordering() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    update outbox.backlog set is_ordered = new.ordering = 'key'
     where subscription_id = new.id;
    if new.ordering = 'none' then
        update outbox.deliveries as delivery
           set key = null, due_at = least(delivery.due_at, clock_timestamp())
         where delivery.subscription_id = new.id
           and delivery.key is not null
           and delivery.lease_token is null;
        delete from outbox.parked_keys where subscription_id = new.id;
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.forget_all_of(partition regclass) RETURNS boolean
    LANGUAGE plpgsql
    AS $_$
declare
    highest xid8;
    newest  timestamptz;
    last    bigint;
begin
    execute format('select (select one.xid from %1$s as one order by one.xid desc limit 1), '
                   '(select max(one.created_at) from (select event.created_at from %1$s as event '
                   'order by event.position desc limit 10000) as one), '
                   '(select max(one.position) from %1$s as one)', forget_all_of.partition)
       into highest, newest, last;
    return outbox_internal.forget_events(highest, newest, last);
end;
$_$;

COMMENT ON FUNCTION outbox_internal.forget_all_of(partition regclass) IS 'Record that all events of a partition leave the log. Call it before the partition is dropped or detached, in the same transaction and with the lock that this takes.';

CREATE FUNCTION outbox_internal.forget_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.forget_events(
                -- max(xid8) is younger than PostgreSQL 14
                (select event.xid from removed as event order by event.xid desc limit 1),
                (select max(event.created_at) from removed as event),
                (select max(event.position) from removed as event));
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    if forget_events.newest is null then
        return false;
    end if;
    insert into outbox.forgotten as known (xid, created_at, position)
    values (forget_events.highest, forget_events.newest, forget_events.last)
    on conflict on constraint forgotten_pkey do update
       set xid = greatest(known.xid, excluded.xid),
           created_at = greatest(known.created_at, excluded.created_at),
           position = greatest(known.position, excluded.position)
     where known.xid is null
        or excluded.xid > known.xid
        or excluded.created_at > known.created_at
        or excluded.position > known.position;
    return true;
end;
$$;

COMMENT ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) IS 'Record that events up to this transaction id, time and position leave the log. Returns whether there were any.';

CREATE FUNCTION outbox_internal.forget_order() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    delete from outbox.parked_keys where subscription_id = old.id;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.forget_truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.forget_all_of(tg_relid::regclass);
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.function_call(function text) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $_$
declare
    target    pg_catalog.pg_proc;
    arguments text[] := '{}';
    n         integer;
    name      text;
    takes     text;
    schema    text;
begin
    if function !~ '^[^.(]+[.][^.(]+([(].*[)])?$' then
        raise exception using errcode = '22023',
            message = format('config.function: %L is not the name of a function with its schema',
                             function),
            hint = 'For example {"function": "shop.on_order"}; where there are several of that '
                   'name, "shop.on_order(jsonb)".';
    end if;
    select * into target from pg_catalog.pg_proc as candidate
     where candidate.oid = case when function like '%(%' then to_regprocedure(function)::oid
                                else to_regproc(function)::oid end;
    if target.oid is null then
        raise exception using errcode = '42883',
            message = format('config.function: there is no function %s, or several', function),
            hint = 'Create it first, and let the relay use it: grant usage on its schema and '
                   'execute on it to outbox_relay.';
    end if;
    select namespace.nspname into schema
      from pg_catalog.pg_namespace as namespace
     where namespace.oid = target.pronamespace;
    if schema in ('pg_catalog', 'information_schema', 'outbox', 'outbox_internal') then
        raise exception using errcode = '42501',
            message = format('config.function: %s belongs to the system', function),
            hint = 'Write a function of your own that calls it.';
    end if;
    if target.prokind <> 'f' or target.proretset or target.provariadic <> 0 then
        raise exception using errcode = '42809',
            message = format('config.function: %s is not a plain function', function),
            hint = 'No procedures, aggregates, sets and variadic parameters.';
    end if;
    if target.pronargs = 1
       and target.proargtypes[0] = 'jsonb'::regtype
       and coalesce(target.proargnames[1], '') in ('', 'event') then
        return format('select %I.%I($1)', schema, target.proname);
    end if;
    for n in 1 .. target.pronargs loop
        name := coalesce(target.proargnames[n], '');
        takes := format_type(target.proargtypes[n - 1], null);
        if name in ('payload', 'headers') then
            arguments := arguments || format('%I => ($1 -> %L)::%s', name, name, takes);
        elsif name = 'event' then
            arguments := arguments || format('%I => $1::%s', name, takes);
        elsif name in ('id', 'topic', 'key', 'organization', 'source', 'user_id', 'schema_version',
                       'created_at', 'position') then
            arguments := arguments || format('%I => ($1 ->> %L)::%s', name, name, takes);
        elsif n > target.pronargs - target.pronargdefaults then
            null;  -- it has a default
        else
            raise exception using errcode = '42809',
                message = format('config.function: %s has a parameter %L that is no field of an '
                                 'event',
                                 function, name),
                hint = 'Take one jsonb, or parameters named event, id, topic, key, payload, '
                       'headers, organization, source, user_id, schema_version, created_at, '
                       'position.';
        end if;
    end loop;
    return format('select %I.%I(%s)', schema, target.proname, array_to_string(arguments, ', '));
end;
$_$;

CREATE FUNCTION outbox_internal.halt(subscription_ids bigint[], reasons text[]) RETURNS SETOF bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    update outbox.subscriptions as subscription
       set active = false,
           state_reason = case when subscription.active
                               then (halt.reasons)[array_position(halt.subscription_ids,
                                                                  subscription.id)]
                               else subscription.state_reason end
     where subscription.id in (select free.id
                                 from outbox.subscriptions as free
                                where free.id = any (halt.subscription_ids)
                                  and free.ordering = 'key'
                                  and free.on_exhausted = 'halt'
                                  for no key update skip locked)
    returning subscription.id
$$;

CREATE FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select (topic is null or outbox.topic_matches(topic, letter.topic))
       and (error_like is null
            or letter.reason like error_like
            or letter.answer like error_like
            or letter.status::text like error_like)
       and (since is null or letter.died_at >= since)
       and (until is null or letter.died_at < until)
$$;

CREATE FUNCTION outbox_internal.is_routed(event outbox.events) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    -- without a transaction id it is from a dead letter
    select event.xid is null
           or pg_visible_in_snapshot(event.xid, cursor.settled)
           or (cursor.window_end is not null
               and pg_visible_in_snapshot(event.xid, cursor.window_end)
               and event.position <= cursor.page_after)
           or exists (select from outbox.routed_early as early
                       where early.position = event.position)
      from outbox.cursor as cursor
     order by cursor.step desc
     limit 1
$$;

CREATE FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    select exists (select from outbox.retention_periods as known
                    where known.log = is_steady.log
                      and known.steady_since <= is_steady.at - interval '10 minutes'
                      and is_steady.at between known.looked_at - interval '1 minute'
                                           and known.looked_at
                                               + greatest(known.period / 4, interval '1 hour'))
$$;

CREATE FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select row_xmin::text::bigint = xact::text::bigint % 4294967296
$$;

CREATE FUNCTION outbox_internal.keep_for_ever(what text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    delete from outbox.retention_periods as known where known.log = keep_for_ever.what;
    delete from outbox.retention_kept as kept where kept.log = keep_for_ever.what;
$$;

COMMENT ON FUNCTION outbox_internal.keep_for_ever(what text) IS 'Forget that relays removed old events, attempts, event_ids or dead_letters: their setting is off. Called by relays.';

CREATE FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) RETURNS text
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'on'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $_$
declare
    first      bigint;
    last       bigint;
    newest     xid8;
    reason     text;
begin
    execute format('select (select min(event.position) from %1$s as event), '
                   '(select max(event.position) from %1$s as event), '
                   '(select event.xid from %1$s as event order by event.xid desc limit 1)', part)
       into first, last, newest;
    if first is null then
        return null;
    end if;
    execute format($f$
        with routed as (
            select cursor.settled from outbox.cursor as cursor order by cursor.step desc limit 1
        )
        select case
            when exists (
                    select from %1$s as event
                     where event.xid >= (select pg_snapshot_xmin(routed.settled) from routed)
                       and event.created_at < $2
                       and not pg_visible_in_snapshot(event.xid,
                                                      (select routed.settled from routed)))
              or exists (select from outbox.routed_early as early
                          where early.created_at >= $1 and early.created_at < $2)
            then 'events that are not routed'
            else coalesce(
                (select 'the start of ' || subscription.name
                   from outbox.starts as start
                   join outbox.subscriptions as subscription
                     on subscription.id = start.subscription_id
                  where start.settled is null
                     or (start.position < $4
                         and coalesce(start.until, $4) >= $3
                         and coalesce(start.since, '-infinity') < $2)
                  order by subscription.name limit 1),
                (select 'replay ' || replay.id
                   from outbox.replays as replay
                  where replay.state in ('running', 'paused')
                    and replay.position < $4 and replay.until_position >= $3
                    and replay.since < $2 and coalesce(replay.until, 'infinity') > $1
                  order by replay.id limit 1),
                (select 'dead letters of ' || letter.subscription
                   from outbox.dead_letters as letter
                  where letter.position between $3 and $4
                    and letter.created_at >= $1 and letter.created_at < $2
                    and $5 is distinct from 'dead-letter'
                    and exists (select from %1$s as event where event.position = letter.position)
                  limit 1),
                (select 'deliveries of relay ' || page.relay
                   from outbox.pages as page
                  where page.created_from < $2 and page.created_until >= $1
                  limit 1),
                (select 'the backlog of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = waiting.subscription_id), 'a subscription')
                   from outbox.backlog as waiting
                  where waiting.created_from < $2 and waiting.created_until >= $1
                    and waiting.positions && int8range($3, $4, '[]')
                    and exists (
                            select
                              from unnest(waiting.positions
                                          * int8multirange(int8range($3, $4, '[]'))) as span
                             cross join lateral (
                                   select from %1$s as event
                                    where event.position >= lower(span)
                                      and event.position < upper(span)
                                      and event.created_at >= $1 and event.created_at < $2
                                    limit 1) as found)
                  limit 1),
                (select 'deliveries of ' || coalesce(
                            (select one.name from outbox.subscriptions as one
                              where one.id = delivery.subscription_id), 'a subscription')
                   from outbox.deliveries as delivery
                  where delivery.created_at >= $1 and delivery.created_at < $2
                    -- the times of a default partition may be those of another one, too
                    and exists (select from %1$s as event
                                 where event.position = delivery.position)
                  limit 1))
        end$f$, part)
       into reason
      using low, high, first, last, laggard;
    return coalesce(reason, case when newest >= mark
                                 then 'live clients: it has events that were published later' end);
end;
$_$;

CREATE FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $$
begin
    perform pg_advisory_xact_lock(7411006);
    select coalesce(max(one.id), 0) into delivery from outbox.deliveries as one;
    select coalesce(max(one.id), 0) into waiting from outbox.backlog as one;
    select coalesce(max(one.id), 0) into page from outbox.pages as one;
    select coalesce(max(one.id), 0) into replay from outbox.replays as one;
    select coalesce(max(one.id), 0) into subscription from outbox.subscriptions as one;
    raise sqlstate 'OB001';  -- gives the lock back
exception when sqlstate 'OB001' then
    null;
end;
$$;

CREATE FUNCTION outbox_internal.log_column(log text, period interval) RETURNS name
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
    if log is null or log not in ('events', 'attempts') then
        raise exception using errcode = '22023',
            message = format('log: %L is neither events nor attempts', log);
    end if;
    perform outbox_internal.check_period(period);
    return case log when 'events' then 'created_at' else 'at' end;
end;
$$;

CREATE FUNCTION outbox_internal.log_partitions(log text) RETURNS TABLE(relation regclass, low timestamp with time zone, high timestamp with time zone, is_plain boolean)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO'
    SET "TimeZone" TO 'UTC'
    AS $_$
    select part.relation,
           case part.bounds[1] when 'MINVALUE' then '-infinity'
                else trim('''' from part.bounds[1])::timestamptz end,
           case part.bounds[2] when 'MAXVALUE' then 'infinity'
                else trim('''' from part.bounds[2])::timestamptz end,
           part.is_plain
      from (select class.oid::regclass as relation, class.relkind = 'r' as is_plain,
                   regexp_match(pg_get_expr(class.relpartbound, class.oid),
                                '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') as bounds
              from pg_inherits as child
              join pg_class as class on class.oid = child.inhrelid
             where child.inhparent = to_regclass(format('outbox.%I', log_partitions.log))) as part
     where part.bounds is not null
     order by 2
$_$;

CREATE FUNCTION outbox_internal.make_pace() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    tenant text   := '';
    member bigint := 0;
begin
    if tg_table_name = 'subscriptions' then
        member := coalesce(new.id, old.id);
    else
        tenant := coalesce(new.organization, old.organization);
    end if;
    if tg_op = 'DELETE' then
        delete from outbox.paces as pace
         where pace.organization = tenant and pace.subscription_id = member;
    elsif not exists (select from outbox.paces as pace
                       where pace.organization = tenant and pace.subscription_id = member) then
        insert into outbox.paces (organization, subscription_id) values (tenant, member);
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.make_partition(log text, period interval, OUT done text, OUT partition text, OUT problem text) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    seen outbox.retention_periods;
begin
    select made.* into done, partition, problem
      from outbox_internal.make_partition_at(log, period, now()) as made;
    select known.* into seen from outbox.retention_periods as known
     where known.log = make_partition.log;
    if done is distinct from 'busy'
       and (seen.log is null or seen.period <> make_partition.period
            or seen.problem is distinct from make_partition.problem
            or not seen.looked_at between now() - interval '50 seconds' and now()) then
        perform outbox_internal.note_period(log, period, null, now(), problem);
    end if;
end;
$$;

COMMENT ON FUNCTION outbox_internal.make_partition(log text, period interval, OUT done text, OUT partition text, OUT problem text) IS 'Make the next partition of a log, or do the next step towards it. Called by relays.';

CREATE FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    SET "DateStyle" TO 'ISO'
    SET "TimeZone" TO 'UTC'
    AS $$
declare
    key    name := outbox_internal.log_column(log, period);
    width  interval := outbox_internal.partition_width(period);
    parent regclass := to_regclass(format('outbox.%I', log));
    rest   regclass;
    top    timestamptz;  -- end of the partitions that cover the time from now on without a gap
    beyond timestamptz;  -- beginning of the first one behind that
    fence  timestamptz;
    valid  boolean;
    low    timestamptz;
    gap    text;
begin
    -- One relay at a time.
    if not pg_try_advisory_xact_lock(7411005) then
        done := 'busy';
        return;
    end if;
    select nullif(tree.partdefid, 0) into rest
      from pg_partitioned_table as tree where tree.partrelid = parent;
    if rest is null then
        execute format('create table outbox.%I partition of %s default', log || '_default', parent);
        perform outbox_internal.finish_partition(
                    to_regclass(format('outbox.%I', log || '_default')), log);
        done := 'made';
        partition := log || '_default';
        return;
    end if;
    select covered.top, covered.beyond into top, beyond
      from outbox_internal.covered_until(log, at) as covered;
    select obj_description(fenced.oid, 'pg_constraint')::timestamptz, fenced.convalidated
      into fence, valid
      from pg_constraint as fenced
     where fenced.conrelid = rest and fenced.conname = 'retention_fence';

    if top <= at and (top > '-infinity' or beyond < 'infinity') then
        gap := format('until %s rows go to %s: no partition covers the time from now on',
                      coalesce(nullif(beyond, 'infinity'),
                               outbox_internal.border_after(at + width, width)), rest);
    end if;
    if fence is not null and (fence <= at or top >= at + width or beyond <= fence) then
        -- it stood for too long, or is needed no longer
        perform outbox_internal.unfence(rest);
        done := 'unfenced';
        return;
    end if;
    if top >= at + width then
        return;
    end if;
    if fence is not null and not valid then
        -- publishers write meanwhile
        execute format('alter table %s validate constraint retention_fence', rest);
        done := 'validated';
        return;
    end if;
    if fence is null and pg_relation_size(rest) > outbox_internal.scanned_at_once() then
        low := case when top <= at then outbox_internal.border_after(at + width, width)
                    -- what is set before the fence must not belong to the last partition
                    else top + interval '1 second' end;
        if low >= beyond then
            problem := gap;
            return;
        end if;
        perform outbox_internal.fence(rest, key, low);
        done := 'fenced';
        return;
    end if;
    if top = '-infinity' and beyond = 'infinity' then
        partition := outbox_internal.convert_default(
                         log, rest,
                         coalesce(fence, outbox_internal.border_after(at + width, width)));
        done := 'converted';
        return;
    end if;
    -- When no relay came for long, the default partition has rows of a time up to now. They stay.
    low := case when fence is not null then greatest(fence, top)
                when top > at then top
                else outbox_internal.border_after(at + width, width) end;
    if low >= beyond then
        problem := gap;
        return;
    end if;
    partition := outbox_internal.add_partition(
                     log, low, least(outbox_internal.border_after(low, width), beyond));
    done := 'made';
exception
    when lock_not_available or deadlock_detected then
        done := 'locked';
        partition := null;
        problem := 'a lock: ' || sqlerrm;
    when check_violation then
        done := 'refused';
        partition := null;
        problem := format('%s has rows of a time in the future, so that no partition can be made '
                          'for it: %s', rest, sqlerrm);
    when others then
        done := 'refused';
        partition := null;
        problem := sqlerrm;
end;
$$;

CREATE FUNCTION outbox_internal.note_backlogs(subscriptions bigint[], ages double precision[], threshold double precision) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
declare
    one       record;
    published integer := 0;
begin
    delete from outbox.announcements as last
     where not exists (select from outbox.subscriptions as subscription
                        where subscription.id = last.subscription_id);
    for one in
        select subscription.id, subscription.name, subscription.organization, measured.age
          from unnest(note_backlogs.subscriptions, note_backlogs.ages) as measured (id, age)
          join outbox.subscriptions as subscription on subscription.id = measured.id
         where measured.age >= note_backlogs.threshold
           -- otherwise it was announced why nothing is sent
           and subscription.active
           and subscription.state in ('pending', 'ok', 'invalid')
         order by subscription.id
    loop
        insert into outbox.announcements as last (subscription_id, what, at, threshold)
        values (one.id, 'backlog', clock_timestamp(),
                make_interval(secs => note_backlogs.threshold))
        on conflict (subscription_id, what) do update
           set at = excluded.at, threshold = excluded.threshold, cleared_at = null
         where last.cleared_at < excluded.at - interval '10 minutes';
        continue when not found;
        perform outbox_internal.announce(
                    'backlog', one.name, one.organization,
                    format('its oldest event has been owed for %s s', round(one.age)),
                    jsonb_build_object('state', 'over', 'oldest_age_seconds', round(one.age)));
        published := published + 1;
    end loop;
    for one in
        update outbox.announcements as last
           set cleared_at = clock_timestamp()
          from outbox.subscriptions as subscription
         where last.what = 'backlog'
           and last.cleared_at is null
           and subscription.id = last.subscription_id
           and not exists (
                   select from unnest(note_backlogs.subscriptions, note_backlogs.ages)
                               as measured (id, age)
                    where measured.id = last.subscription_id
                      and measured.age >= extract(epoch from last.threshold) / 2)
        returning subscription.name, subscription.organization
    loop
        perform outbox_internal.announce('backlog', one.name, one.organization, null,
                                         jsonb_build_object('state', 'cleared'));
        published := published + 1;
    end loop;
    return published;
end;
$$;

COMMENT ON FUNCTION outbox_internal.note_backlogs(subscriptions bigint[], ages double precision[], threshold double precision) IS 'Called by relays with the seconds for which the oldest event of each subscription has been owed. Publishes outbox.subscription.backlog where that became too long or is over. Returns how many.';

CREATE FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) RETURNS void
    LANGUAGE sql
    AS $$
    insert into outbox.retention_kept as kept (partition, log, since, kept_by)
    values (note_kept.partition, note_kept.log, note_kept.at, note_kept.reason)
    on conflict on constraint retention_kept_pkey do update set kept_by = excluded.kept_by
$$;

CREATE FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) RETURNS void
    LANGUAGE sql
    AS $$
    insert into outbox.retention_periods as known (
        log, period, laggard, looked_at, steady_since, problem)
    values (note_period.log, note_period.period, note_period.laggard, note_period.at,
            note_period.at, note_period.problem)
    on conflict on constraint retention_periods_pkey do update
       set period = excluded.period,
           laggard = coalesce(excluded.laggard, known.laggard),
           looked_at = excluded.looked_at,
           steady_since = case when excluded.looked_at between known.looked_at - interval '1 minute'
                                    and known.looked_at
                                        + greatest(excluded.period / 4, interval '1 hour')
                               then least(known.steady_since, excluded.looked_at)
                               else excluded.looked_at end,
           problem = excluded.problem
$$;

CREATE FUNCTION outbox_internal.partition_width(period interval) RETURNS interval
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
    select make_interval(secs => least(greatest(floor(extract(epoch from period) / 10), 3600),
                                       31 * 86400))
$$;

CREATE TABLE outbox.replays (
    id bigint NOT NULL,
    subscription_id bigint NOT NULL,
    state text DEFAULT 'running'::text NOT NULL,
    since timestamp with time zone NOT NULL,
    until timestamp with time zone,
    topic text,
    event uuid,
    rate text,
    started_by text DEFAULT SESSION_USER NOT NULL,
    started_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    ended_at timestamp with time zone,
    settled pg_snapshot NOT NULL,
    window_end pg_snapshot,
    page_after bigint,
    first_position bigint NOT NULL,
    until_position bigint NOT NULL,
    "position" bigint NOT NULL,
    seen bigint DEFAULT 0 NOT NULL,
    queued bigint DEFAULT 0 NOT NULL,
    paced_until timestamp with time zone,
    CONSTRAINT since_is_a_time CHECK (((since >= '0001-01-01 00:00:00+00'::timestamp with time zone) AND (since <= '9999-12-31 00:00:00+00'::timestamp with time zone))),
    CONSTRAINT state_is_known CHECK ((state = ANY (ARRAY['running'::text, 'paused'::text, 'done'::text, 'cancelled'::text]))),
    CONSTRAINT until_is_a_time CHECK (((until >= '0001-01-01 00:00:00+00'::timestamp with time zone) AND (until <= '9999-12-31 00:00:00+00'::timestamp with time zone)))
)
WITH (fillfactor='50');

COMMENT ON TABLE outbox.replays IS 'Events that are sent again, a row for each call of outbox.replay. See outbox.replay_status.';

CREATE FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) RETURNS outbox.replays
    LANGUAGE plpgsql STABLE
    AS $$
declare
    planned outbox.replays;
    target  outbox.subscriptions;
    routed  outbox.cursor;
    published timestamptz;  -- of the event
    lowest  bigint;
begin
    planned.subscription_id := outbox_internal.subscription_id(plan_replay.subscription);
    if plan_replay.since is null and plan_replay.event is null then
        raise exception using errcode = '22023', message = 'since: is null',
            hint = 'Give the time of the first event, such as now() - interval ''2 days''.';
    elsif plan_replay.since > now() then
        raise exception using errcode = '22023',
            message = format('since: %s is in the future', plan_replay.since);
    elsif plan_replay.until <= plan_replay.since then
        raise exception using errcode = '22023',
            message = format('until: %s is not after since, %s', plan_replay.until,
                             plan_replay.since),
            hint = 'Events from since on and before until are sent again.';
    end if;
    perform outbox_internal.check_topic_pattern(plan_replay.topic);
    perform outbox_internal.check_rate(plan_replay.rate);

    select one.* into strict routed from outbox.cursor as one order by one.step desc limit 1;
    select one.* into strict target
      from outbox.subscriptions as one where one.id = planned.subscription_id;
    if target.sink = 'live' then
        raise exception using errcode = '22023',
            message = format('subscription: %L is a channel, to which nothing is sent again',
                             plan_replay.subscription),
            hint = 'Live clients resume with their token, or name a time to begin from (since).';
    end if;
    if pg_visible_in_snapshot(target.changed, routed.settled) then
        planned.settled := routed.settled;
        planned.window_end := routed.window_end;
        planned.page_after := routed.page_after;
    else
        -- A routing step that is under way may not know this version of the subscription: what it
        -- routes would be missed by both.
        planned.settled := pg_current_snapshot();
    end if;
    select sequence.last_value into strict planned.until_position
      from outbox.events_position_seq as sequence;
    if plan_replay.event is null then
        select coalesce(min(one.position) - 1, planned.until_position) into lowest
          from outbox.events as one;
        planned.first_position := outbox_internal.position_before(
            plan_replay.since, lowest, planned.until_position);
    else
        select one.position, one.created_at into planned.until_position, published
          from outbox_internal.find_event(plan_replay.event) as one;
        if published is null then
            raise exception using errcode = '22023',
                message = format('event: %s is not in the log', plan_replay.event);
        elsif published < plan_replay.since or published >= plan_replay.until then
            raise exception using errcode = '22023',
                message = format('event: %s was published at %s, which is not between since and '
                                 'until',
                                 plan_replay.event, published);
        end if;
        planned.first_position := planned.until_position - 1;
    end if;
    -- infinite times mean all
    planned.since := greatest(coalesce(plan_replay.since, published), '0001-01-01Z');
    planned.until := case when plan_replay.until <= '9999-12-31Z'
                          then greatest(plan_replay.until, '0001-01-01Z') end;
    planned.topic := plan_replay.topic;
    planned.event := plan_replay.event;
    planned.rate := plan_replay.rate;
    planned.position := planned.first_position;
    return planned;
end;
$$;

CREATE FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    AS $$
declare
    below  bigint := lowest;
    above  bigint := highest;
    middle bigint;
    found_event record;
begin
    while highest - lowest > 100000 and above - below > 1000 loop
        middle := below + (above - below) / 2;
        select event.position, event.created_at into found_event
          from outbox.events as event
         where event.position > middle and event.position <= above
         order by event.position
         limit 1;
        if found and found_event.created_at < position_before.at - interval '1 hour' then
            below := found_event.position;
        else
            above := middle;
        end if;
    end loop;
    return below;
end;
$$;

CREATE FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    promoted bigint;
begin
    update outbox.deliveries as delivery
       set due_at = clock_timestamp()
     where delivery.id in (
               select first.id
                 from (select distinct one.subscription_id, one.key
                         from unnest(promote_keys.subscription_ids, promote_keys.keys)
                              as one (subscription_id, key)
                        where one.key is not null) as wanted
                cross join lateral (
                      select one.id
                        from outbox.deliveries as one
                       where one.subscription_id = wanted.subscription_id
                         and one.key = wanted.key
                       order by one.position, one.id
                       limit 1) as first
                where not exists (select from outbox.parked_keys as parked
                                   where parked.subscription_id = wanted.subscription_id
                                     and parked.key = wanted.key))
       and delivery.lease_token is null
       and delivery.due_at = outbox_internal.never();
    get diagnostics promoted = row_count;
    return promoted;
end;
$$;

CREATE FUNCTION outbox_internal.record_audit(action text, subscription text DEFAULT NULL::text, details jsonb DEFAULT '{}'::jsonb, rows bigint DEFAULT NULL::bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
    insert into outbox.audit (action, subscription, rows, details, login, role, application,
                              actor)
    select record_audit.action, record_audit.subscription, record_audit.rows,
           coalesce(jsonb_strip_nulls(record_audit.details), '{}')
           || case when done.by_relay then '{"by": "relay"}'::jsonb else '{}' end,
           session_user, coalesce(nullif(current_setting('role'), 'none'), session_user),
           done.application,
           nullif(left(current_setting('outbox.actor', true), 255), '')
      from (select current_setting('application_name') as application,
                   -- as relays call themselves, or a login that may be nothing else
                   current_setting('application_name') ~ '^pgoutbox/[^/]+/'
                   and current_setting('application_name') !~ '^pgoutbox/[^/]+/(cli|api)$'
                   or coalesce((select pg_has_role(session_user, relay.oid, 'member')
                                  from pg_roles as relay where relay.rolname = 'outbox_relay')
                               and not (select pg_has_role(session_user, admin.oid, 'member')
                                          from pg_roles as admin
                                         where admin.rolname = 'outbox_admin'), false)
                       as by_relay) as done
    returning id
$_$;

COMMENT ON FUNCTION outbox_internal.record_audit(action text, subscription text, details jsonb, rows bigint) IS 'Write a row of outbox.audit: what was done, to which subscription, with which arguments, and how many rows it took. Returns its id.';

CREATE FUNCTION outbox_internal.record_beginning() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    insert into outbox.beginnings (subscription_id, settled, window_end, page_after)
    select new.id, cursor.settled, cursor.window_end, cursor.page_after
      from outbox.cursor as cursor
     order by cursor.step desc
     limit 1;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.record_start() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    perform outbox_internal.refuse_for_channel('start')
       from outbox.subscriptions as subscription
      where subscription.id = new.subscription_id and subscription.sink = 'live';
    update outbox.beginnings as beginning set starts_at = coalesce(new.since, '-infinity')
     where beginning.subscription_id = new.subscription_id;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.record_writer() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    new.recorded_by := pg_current_xact_id();
    return new;
end;
$$;

CREATE FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    select case
           when subscription.organization is not null
                and subscription.organization is distinct from event.organization::text
           then 'organization'
           when not exists (select from unnest(subscription.topics) as pattern
                             where outbox.topic_matches(pattern, event.topic))
           then 'topics'
           when subscription.keys is not null
                and not exists (select from unnest(subscription.keys) as prefix
                                 where starts_with(event.key, prefix))
           then 'keys'
           when starts_with(event.topic, 'outbox.') and event.key = subscription.name
           then 'itself'
           when subscription.match is not null
                and not event.payload::jsonb @> subscription.match
           then 'match'
           when subscription.filter is not null then 'filter_unknown'
           end
$$;

CREATE FUNCTION outbox_internal.refuse_for_channel(field text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    raise exception using errcode = '22023',
        message = format('%s: means nothing for a channel (sink live), to which nothing is owed',
                         refuse_for_channel.field),
        hint = 'Leave it out. Clients of a channel say themselves from where on they want events.';
end;
$$;

CREATE FUNCTION outbox_internal.repeat_step() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    update outbox.cursor set step = step + 1;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.retry_after_correction() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    with waiting as materialized (
        select one.id, row_number() over oldest_first - 1 as n, count(*) over () as all_of_them
          from (select delivery.id, delivery.position
                  from outbox.deliveries as delivery
                 where delivery.subscription_id = new.id
                   and delivery.lease_token is null
                   and delivery.due_at > now()
                   and delivery.due_at < outbox_internal.never()
                   and delivery.owed_since <= now()  -- not what is scheduled for later
                 order by delivery.due_at, delivery.id
                 limit 100000
                   for update skip locked) as one
        window oldest_first as (order by one.position, one.id)
    )
    update outbox.deliveries as delivery
       set due_at = least(delivery.due_at,
                          clock_timestamp()
                          + make_interval(secs => waiting.n
                                                  * least(0.01, 300.0 / waiting.all_of_them))),
           asked  = waiting.n = 0
      from waiting
     where delivery.id = waiting.id;
    if found and current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.ring_doorbell() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION outbox_internal.ring_for_replay() RETURNS boolean
    LANGUAGE plpgsql
    AS $$
begin
    if current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_notify('outbox_doorbell', 'due');
        return true;
    end if;
    return false;
end;
$$;

CREATE FUNCTION outbox_internal.ring_subscriptions() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_catalog.pg_notify('outbox_doorbell', '');
    end if;
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.scanned_at_once() RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select 8388608::bigint $$;

CREATE FUNCTION outbox_internal.seconds_between(rate text) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    select case right(rate, 1) when 's' then 1 when 'm' then 60 else 3600 end
           / split_part(rate, '/', 1)::double precision
$$;

CREATE FUNCTION outbox_internal.sink_fields() RETURNS TABLE(sink text, field text, types text[], is_required boolean)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
    values ('webhook', 'url', '{string}'::text[], true),
           ('webhook', 'method', '{string}', false),
           ('webhook', 'headers', '{object}', false),
           ('webhook', 'secret', '{string,array}', false),
           ('webhook', 'body', '{string}', false),
           ('webhook', 'batch', '{object}', false),
           ('webhook', 'timeout', '{string}', false),
           ('webhook', 'dead_letter_on', '{array}', false),
           ('function', 'function', '{string}', true),
           ('function', 'timeout', '{string}', false),
           ('function', 'batch', '{number}', false),
           ('function', 'concurrency', '{number}', false),
           ('postgres', 'connection', '{string}', false),
           ('postgres', 'table', '{string}', false),
           ('postgres', 'function', '{string}', false),
           ('postgres', 'source', '{string}', false),
           ('postgres', 'timeout', '{string}', false),
           ('postgres', 'batch', '{number}', false),
           ('kafka', 'connection', '{string}', false),
           ('kafka', 'topic', '{string}', true),
           ('kafka', 'key', '{string}', false),
           ('kafka', 'body', '{string}', false),
           ('nats', 'connection', '{string}', false),
           ('nats', 'subject', '{string}', true),
           ('nats', 'stream', '{string}', false),
           ('nats', 'message_id', '{string}', false),
           ('nats', 'body', '{string}', false),
           ('redis', 'connection', '{string}', false),
           ('redis', 'stream', '{string}', true),
           ('redis', 'maxlen', '{number}', false),
           ('redis', 'body', '{string}', false),
           ('amqp', 'connection', '{string}', false),
           ('amqp', 'exchange', '{string}', false),
           ('amqp', 'routing_key', '{string}', false),
           ('amqp', 'mandatory', '{boolean}', false),
           ('amqp', 'body', '{string}', false),
           ('handler', 'handler', '{string}', true),
           ('handler', 'timeout', '{string}', false),
           ('file', 'connection', '{string}', false),
           ('file', 'path', '{string}', true),
           ('file', 'sync', '{boolean}', false),
           ('stdout', null, null, null),
           ('live', null, null, null)
$$;

CREATE FUNCTION outbox_internal.stay_before_fence() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    if tg_argv[0] = 'at' then
        new.at := least(new.at, tg_argv[1]::timestamptz - interval '1 microsecond');
    else
        new.created_at := least(new.created_at, tg_argv[1]::timestamptz - interval '1 microsecond');
    end if;
    return new;
end;
$$;

CREATE FUNCTION outbox_internal.subscription_id(name text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    AS $$
declare
    found_id bigint;
begin
    select existing.id into found_id
      from outbox.subscriptions as existing
     where existing.name = subscription_id.name;
    if found_id is null then
        raise exception using errcode = '22023',
            message = format('there is no subscription %L', subscription_id.name),
            hint = 'List all: select name from outbox.subscriptions.';
    end if;
    return found_id;
end;
$$;

CREATE FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) RETURNS SETOF outbox.waiting
    LANGUAGE plpgsql
    AS $$
declare
    chosen outbox.waiting[];
    part   record;
    ids    bigint[] := '{}';
    taken  int8multirange[] := '{}';
    found_now int8multirange;
begin
    perform outbox_internal.check_max_rows(take_waiting.max_rows);
    perform outbox_internal.check_topic_pattern(take_waiting.topic);
    if take_waiting.subscription is not null then
        perform outbox_internal.subscription_id(take_waiting.subscription);
    end if;
    chosen := array(
        select matching
          from outbox.matching_deliveries(take_waiting.subscription, take_waiting.topic,
                                          take_waiting.event, take_waiting.error_like) as matching
         where not take_waiting.to_retry
            or (not matching.asked
                and (take_waiting.event is not null or matching.owed_since <= now())
                -- nothing overtakes the events of its key before it
                and (matching.place = 'delivery' and matching.due_at is not null
                     or not exists (select from outbox.subscriptions as target
                                     where target.id = matching.subscription_id
                                       and target.ordering = 'key')))
         limit take_waiting.max_rows);

    return query
        with gone as (
            delete from outbox.deliveries as delivery
             where delivery.id in (
                       select free.id
                         from outbox.deliveries as free
                        where free.id = any (array(select one.id from unnest(chosen) as one
                                                    where one.place = 'delivery'))
                          and (free.lease_token is null or free.due_at <= now())
                          for update skip locked)
            returning delivery.id
        )
        select one.* from unnest(chosen) as one
          join gone on gone.id = one.id
         where one.place = 'delivery';

    for part in
        select one.id, range_agg(int8range(one.position, one.position + 1)) as positions
          from unnest(chosen) as one
         where one.place = 'backlog'
         group by one.id
         order by one.id
    loop
        -- A relay may have claimed some of it since.
        select backlog.positions * part.positions into found_now
          from outbox.backlog as backlog
         where backlog.id = part.id
           for update skip locked;
        continue when not found or isempty(found_now);
        update outbox.backlog as backlog set positions = backlog.positions - found_now
         where backlog.id = part.id;
        delete from outbox.backlog as backlog
         where backlog.id = part.id and isempty(backlog.positions);
        ids := ids || part.id;
        taken := taken || found_now;
    end loop;
    return query
        select one.* from unnest(chosen) as one
          join unnest(ids, taken) as now_taken (id, positions) on now_taken.id = one.id
         where one.place = 'backlog' and now_taken.positions @> one.position;

    ids := '{}';
    taken := '{}';
    for part in
        select one.id, range_agg(int4range(one.number, one.number + 1)) as numbers,
               range_agg(int8range(one.number, one.number + 1)) as as_positions
          from unnest(chosen) as one
         where one.place = 'page'
         group by one.id
         order by one.id
    loop
        -- With another token: the relay may only have been frozen, and must not send what is left
        -- under this lease.
        update outbox.pages as page
           set done = page.done + part.numbers, lease_token = gen_random_uuid()
         where page.ctid = (select free.ctid from outbox.pages as free
                             where free.id = part.id and free.due_at <= now()
                               and not free.done && part.numbers
                               for update skip locked);
        continue when not found;
        delete from outbox.pages as page
         where page.id = part.id
           and not exists (select from outbox_internal.left_of(page));
        ids := ids || part.id;
        taken := taken || part.as_positions;
    end loop;
    return query
        select one.* from unnest(chosen) as one
          join unnest(ids, taken) as now_taken (id, numbers) on now_taken.id = one.id
         where one.place = 'page' and now_taken.numbers @> one.number::bigint;
end;
$$;

CREATE FUNCTION outbox_internal.timeline() RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
begin
    if pg_is_in_recovery() then
        return null;
    end if;
    return ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
exception when others then
    return null;
end;
$$;

CREATE FUNCTION outbox_internal.topic_expression(pattern text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $_$
declare
    segments  text[] := string_to_array(pattern, '.');
    expression text := '';
    segment   text;
begin
    perform outbox_internal.check_topic_pattern(pattern);
    -- Each segment is matched with the dot before it, so that `**` can match none.
    foreach segment in array segments loop
        if segment = '**' then
            expression := expression || '([.][^.]+)*';
        else
            expression := expression
                          || '[.]'
                          || regexp_replace(rtrim(segment, '*'), '([^[:alnum:]_])', E'\\\\\\1', 'g')
                          || case when segment = '*' then '[^.]+'
                                  when right(segment, 1) = '*' then '[^.]*'
                                  else '' end;
        end if;
    end loop;
    return '^' || expression || '$';
end;
$_$;

CREATE FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) RETURNS boolean
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $_$
    select length(pattern) between 1 and 255
       and pattern ~ '^([*][*]|[^.*[:cntrl:] ]*[*]|[^.*[:cntrl:] ]+)'
                     '([.]([*][*]|[^.*[:cntrl:] ]*[*]|[^.*[:cntrl:] ]+))*$'
$_$;

CREATE FUNCTION outbox_internal.traced_event(id uuid) RETURNS SETOF outbox.events
    LANGUAGE sql STABLE
    AS $$
    with place as materialized (
        select found.position, found.created_at
          from outbox_internal.find_event(traced_event.id) as found
    )
    select event.*
      from place
      join outbox.events as event
        on event.position = place.position
       and event.created_at = place.created_at
    union all
    select whole.*
      from (select letter.*
              from outbox.dead_letters as letter
             where letter.event_id = traced_event.id
             order by letter.id desc
             limit 1) as letter
     cross join lateral jsonb_populate_record(
           null::outbox.events,
           to_jsonb(letter) || jsonb_build_object('id', letter.event_id)) as whole
     where not exists (select from place)
$$;

CREATE FUNCTION outbox_internal.unfence(rest regclass) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    execute format('lock table only %s in access exclusive mode', rest);
    if exists (select from pg_constraint as fenced
                where fenced.conrelid = rest and fenced.conname = 'retention_fence') then
        execute format('alter table %s drop constraint retention_fence', rest);
        execute format('drop trigger retention_fence on %s', rest);
    end if;
end;
$$;

CREATE FUNCTION outbox_internal.unpark(dead_letters bigint[]) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
declare
    ids  bigint[];
    keys text[];
begin
    with unparked as (
        delete from outbox.parked_keys as parked
         where parked.dead_letter_id = any (unpark.dead_letters)
        returning parked.subscription_id, parked.key
    )
    select array_agg(unparked.subscription_id), array_agg(unparked.key) into ids, keys
      from unparked;
    perform outbox_internal.promote_keys(ids, keys);
    return coalesce(cardinality(ids), 0);
end;
$$;

CREATE FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET plan_cache_mode TO 'force_custom_plan'
    AS $$
begin
    return exists (select from outbox.deliveries as one
                    where one.id > was_asked_since.delivery
                      and one.created_at >= low and one.created_at < high)
        or exists (select from outbox.backlog as one
                    where one.id > was_asked_since.waiting
                      and one.created_from < high and one.created_until >= low)
        or exists (select from outbox.pages as one
                    where one.id > was_asked_since.page
                      and one.created_from < high and one.created_until >= low)
        or exists (select from outbox.starts as one where one.settled is null)
        or exists (select from outbox.replays as one where one.id > was_asked_since.replay)
        or exists (select from outbox.subscriptions as one
                    where one.id > was_asked_since.subscription);
end;
$$;

CREATE FUNCTION outbox_internal.watch_partition(part regclass) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
    execute format('create trigger forget_deleted after delete on %s '
                   'referencing old table as removed '
                   'for each statement execute function outbox_internal.forget_deleted()', part);
    execute format('create trigger forget_truncated before truncate on %s '
                   'for each statement execute function outbox_internal.forget_truncated()', part);
end;
$$;

CREATE FUNCTION outbox_internal.watch_partitions() RETURNS integer
    LANGUAGE plpgsql
    AS $$
declare
    part regclass;
    made integer := 0;
begin
    for part in
        select tree.relid
          from pg_partition_tree('outbox.events') as tree
         where not exists (select from pg_trigger as existing
                            where existing.tgrelid = tree.relid
                              and existing.tgname = 'forget_deleted')
    loop
        execute format('create trigger forget_deleted after delete on %s '
                       'referencing old table as removed '
                       'for each statement execute function outbox_internal.forget_deleted()',
                       part);
        execute format('create trigger forget_truncated before truncate on %s '
                       'for each statement execute function outbox_internal.forget_truncated()',
                       part);
        made := made + 1;
    end loop;
    return made;
end;
$$;

COMMENT ON FUNCTION outbox_internal.watch_partitions() IS 'Make removals from partitions of outbox.events count. Call it after making a partition. Returns how many were not watched.';

CREATE TABLE outbox.announcements (
    subscription_id bigint NOT NULL,
    what text NOT NULL,
    at timestamp with time zone NOT NULL,
    reason text,
    threshold interval,
    cleared_at timestamp with time zone,
    CONSTRAINT announcements_what_check CHECK ((what = ANY (ARRAY['invalid'::text, 'backlog'::text])))
);

COMMENT ON TABLE outbox.announcements IS 'The last outbox.subscription.invalid and outbox.subscription.backlog of each subscription.';

CREATE TABLE outbox.pauses (
    subscription_id bigint NOT NULL,
    until timestamp with time zone NOT NULL,
    asked_at timestamp with time zone NOT NULL
)
WITH (fillfactor='50');

CREATE VIEW outbox.asked_pauses AS
 SELECT pause.subscription_id,
    pause.until
   FROM (outbox.pauses pause
     JOIN outbox.subscriptions subscription ON ((subscription.id = pause.subscription_id)))
  WHERE ((pause.until > now()) AND (pause.asked_at > COALESCE(subscription.resumed_at, '-infinity'::timestamp with time zone)));

COMMENT ON VIEW outbox.asked_pauses IS 'The pauses that destinations asked for (Retry-After) and that are not over.';

CREATE TABLE outbox.attempts_default (
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    delivery_id bigint,
    subscription_id bigint NOT NULL,
    "position" bigint NOT NULL,
    event_id uuid,
    attempt integer NOT NULL,
    duration interval NOT NULL,
    outcome text NOT NULL,
    reason text,
    status integer,
    answer text,
    ambiguous boolean DEFAULT false NOT NULL,
    stale boolean DEFAULT false NOT NULL,
    repeated boolean DEFAULT false NOT NULL,
    relay text NOT NULL
);

ALTER TABLE ONLY outbox.attempts_default REPLICA IDENTITY FULL;

CREATE TABLE outbox.audit (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    action text NOT NULL,
    subscription text,
    rows bigint,
    details jsonb DEFAULT '{}'::jsonb NOT NULL,
    login text NOT NULL,
    role text NOT NULL,
    application text NOT NULL,
    actor text
);

COMMENT ON TABLE outbox.audit IS 'Who changed subscriptions, dead letters and waiting deliveries, and when. Written with each change, in its transaction; only the owner of the outbox can change it.';

COMMENT ON COLUMN outbox.audit.action IS 'created, changed, paused, resumed, gone, disabled or deleted (a subscription); redriven or discarded (dead letters); retried or cancelled (deliveries); unparked (keys); replay started, replay paused, replay resumed or replay cancelled; limited (an organization); adopted (the database).';

COMMENT ON COLUMN outbox.audit.details IS 'The arguments that were given; for changed, the names of the fields; {"by": "relay"} where a relay did it.';

COMMENT ON COLUMN outbox.audit.actor IS 'Who asked the application for the change, as far as it says: the setting outbox.actor, which the API sets to the subject of a token.';

ALTER TABLE outbox.audit ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

ALTER TABLE outbox.backlog ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.backlog_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.beginnings (
    subscription_id bigint NOT NULL,
    settled pg_snapshot NOT NULL,
    window_end pg_snapshot,
    page_after bigint,
    starts_at timestamp with time zone
);

COMMENT ON TABLE outbox.beginnings IS 'Which events had been routed when a subscription was made. Removed by outbox.adopt, because transaction ids of another cluster say nothing.';

CREATE VIEW outbox.captures AS
 SELECT format('%I.%I'::text, named.nspname, class.relname) AS "table",
    (captured.settings ->> 'topic'::text) AS topic,
    captured.operations,
        CASE
            WHEN (NOT captured.excludes) THEN found.listed
            ELSE NULL::text[]
        END AS columns,
        CASE
            WHEN captured.excludes THEN found.listed
            ELSE NULL::text[]
        END AS exclude,
    (captured.settings ->> 'condition'::text) AS condition,
    found.key,
    ((captured.settings ->> 'diff'::text))::boolean AS diff,
    NULLIF(concat_ws('; '::text,
        CASE
            WHEN captured.disabled THEN 'a trigger is disabled'::text
            ELSE NULL::text
        END,
        CASE
            WHEN (NOT (captured.operations @> ((captured.settings ->> 'operations'::text))::text[])) THEN 'a trigger is missing'::text
            ELSE NULL::text
        END,
        CASE
            WHEN captured.restored THEN 'restored from a dump: renamed columns are not followed'::text
            ELSE NULL::text
        END,
        CASE
            WHEN (captured.restored AND captured.excludes AND found.listed_gone) THEN 'a column of exclude was renamed before the dump: no column is shown'::text
            ELSE NULL::text
        END,
        CASE
            WHEN ((NOT captured.excludes) AND found.listed_gone) THEN 'a column of columns was dropped'::text
            ELSE NULL::text
        END,
        CASE
            WHEN found.key_gone THEN 'a column of the key was dropped: events have no key'::text
            ELSE NULL::text
        END,
        CASE
            WHEN found.identity_gone THEN 'a column of the primary key was dropped'::text
            ELSE NULL::text
        END,
        CASE
            WHEN ((found.identity_gone IS NOT TRUE) AND (found.identity IS DISTINCT FROM actual.identity)) THEN 'the primary key has changed since, and the old one is still used'::text
            ELSE NULL::text
        END,
        CASE
            WHEN (class.relispartition AND captured.by_statement AND (NOT (EXISTS ( SELECT
               FROM (pg_partition_ancestors(captured.relation) ancestor(relid)
                 JOIN pg_trigger t ON ((t.tgrelid = (ancestor.relid)::oid)))
              WHERE (((ancestor.relid)::oid <> (captured.relation)::oid) AND (t.tgfoid = captured.tgfoid)))))) THEN format('it is a partition now: statements on %s are not captured'::text, pg_partition_root(captured.relation))
            ELSE NULL::text
        END,
        CASE
            WHEN ((class.relkind = 'r'::"char") AND (EXISTS ( SELECT
               FROM pg_inherits i
              WHERE ((i.inhparent = (captured.relation)::oid) OR ((i.inhrelid = (captured.relation)::oid) AND (NOT class.relispartition)))))) THEN 'it inherits or is inherited from: changes through the parent are not those of the child, and are captured wrongly or not at all'::text
            ELSE NULL::text
        END,
        CASE
            WHEN (((captured.settings ->> 'topic'::text) ~ '^[^.]+[.][^.]+$'::text) AND ((to_regclass(format('%I.%I'::text, split_part((captured.settings ->> 'topic'::text), '.'::text, 1), split_part((captured.settings ->> 'topic'::text), '.'::text, 2))))::oid <> (captured.relation)::oid)) THEN format('its topic %s is the name of another table'::text, (captured.settings ->> 'topic'::text))
            ELSE NULL::text
        END,
        CASE
            WHEN (EXISTS ( SELECT
               FROM pg_trigger t
              WHERE ((t.tgrelid = ANY (whole.tables)) AND (t.tgrelid <> (captured.relation)::oid) AND (t.tgfoid = captured.tgfoid) AND (t.tgargs = captured.tgargs) AND (t.tgenabled = ANY (ARRAY['D'::"char", 'R'::"char"]))))) THEN 'a trigger of a partition is disabled'::text
            ELSE NULL::text
        END, (('trigger '::text || reentrant.after) || ' changes rows of this table, which is captured row by row, and the events of these changes may come before those of the statement that runs it: make it a constraint trigger that is initially deferred'::text), (('trigger '::text || reentrant.before) || ' changes other rows of this table before each row of a statement, and the events of these changes may come before those of the statement: make it an AFTER trigger'::text),
        CASE
            WHEN (captured.by_statement AND (EXISTS ( SELECT
               FROM (pg_partition_tree(captured.relation) tree(relid, parentrelid, isleaf, level)
                 JOIN pg_class c ON (((c.oid = (tree.relid)::oid) AND (c.relkind = ANY (ARRAY['r'::"char", 'p'::"char"])))))
              WHERE (((tree.relid)::oid <> (captured.relation)::oid) AND (NOT (EXISTS ( SELECT
                       FROM pg_trigger t
                      WHERE ((t.tgrelid = (tree.relid)::oid) AND (t.tgfoid = captured.tgfoid) AND (t.tgargs = captured.tgargs))))))))) THEN 'a partition was added later: statements on it directly are not captured'::text
            ELSE NULL::text
        END), ''::text) AS problem
   FROM ((((((( SELECT (t.tgrelid)::regclass AS relation,
            t.tgargs,
            t.tgfoid,
            decoded.settings,
            ((decoded.settings ->> 'exclude'::text))::boolean AS excludes,
            (((decoded.settings ->> 'table'::text))::oid <> t.tgrelid) AS restored,
            bool_or((t.tgenabled = ANY (ARRAY['D'::"char", 'R'::"char"]))) AS disabled,
            bool_or((((t.tgtype)::integer & 1) = 0)) AS by_statement,
            bool_or((((t.tgtype)::integer & 1) = 1)) AS by_row,
            bit_or(((t.tgtype)::integer & 28)) AS kinds,
            array_agg(replace((t.tgname)::text, 'outbox_capture_'::text, ''::text) ORDER BY (((t.tgtype)::integer & 28) = 4) DESC, (((t.tgtype)::integer & 28) = 16) DESC) AS operations
           FROM (pg_trigger t
             CROSS JOIN LATERAL ( SELECT outbox_internal.capture_settings(t.tgargs) AS settings
                 OFFSET 0) decoded)
          WHERE ((decoded.settings IS NOT NULL) AND (t.tgfoid = ('outbox_internal.capture_changes()'::regprocedure)::oid) AND (t.tgparentid = (0)::oid) AND (NOT starts_with((t.tgname)::text, 'outbox_capture_partition_'::text)))
          GROUP BY t.tgrelid, t.tgargs, t.tgfoid, decoded.settings) captured
     JOIN pg_class class ON ((class.oid = (captured.relation)::oid)))
     JOIN pg_namespace named ON ((named.oid = class.relnamespace)))
     CROSS JOIN LATERAL ( SELECT array_agg((a.attname)::text ORDER BY listed.place) FILTER (WHERE (list.name = 'key'::text)) AS key,
            array_agg((a.attname)::text ORDER BY listed.place) FILTER (WHERE (list.name = 'identity'::text)) AS identity,
            array_agg((a.attname)::text ORDER BY listed.place) FILTER (WHERE (list.name = 'listed'::text)) AS listed,
            bool_or((a.attnum IS NULL)) FILTER (WHERE (list.name = 'key'::text)) AS key_gone,
            bool_or((a.attnum IS NULL)) FILTER (WHERE (list.name = 'identity'::text)) AS identity_gone,
            bool_or((a.attnum IS NULL)) FILTER (WHERE (list.name = 'listed'::text)) AS listed_gone
           FROM ((( VALUES ('key'::text), ('identity'::text), ('listed'::text)) list(name)
             CROSS JOIN LATERAL UNNEST(((captured.settings ->> list.name))::text[], ((captured.settings ->> (list.name || '_at'::text)))::smallint[]) WITH ORDINALITY listed(name, number, place))
             LEFT JOIN pg_attribute a ON (((a.attrelid = (captured.relation)::oid) AND (a.attnum > 0) AND (NOT a.attisdropped) AND
                CASE
                    WHEN captured.restored THEN (a.attname = listed.name)
                    ELSE (a.attnum = listed.number)
                END)))) found)
     CROSS JOIN LATERAL ( SELECT array_agg((a.attname)::text ORDER BY k.place) AS identity
           FROM ((pg_index i
             CROSS JOIN LATERAL unnest((i.indkey)::smallint[]) WITH ORDINALITY k(attnum, place))
             JOIN pg_attribute a ON (((a.attrelid = i.indrelid) AND (a.attnum = k.attnum))))
          WHERE ((i.indrelid = (captured.relation)::oid) AND i.indisprimary AND (k.place <= i.indnkeyatts))) actual)
     CROSS JOIN LATERAL ( SELECT array_append(ARRAY( SELECT (tree.relid)::oid AS relid
                   FROM pg_partition_tree(captured.relation) tree(relid, parentrelid, isleaf, level)), (captured.relation)::oid) AS tables) whole)
     CROSS JOIN LATERAL ( SELECT string_agg(DISTINCT quote_ident((t.tgname)::text), ', '::text) FILTER (WHERE (((t.tgtype)::integer & 2) = 0)) AS after,
            string_agg(DISTINCT quote_ident((t.tgname)::text), ', '::text) FILTER (WHERE (((t.tgtype)::integer & 2) <> 0)) AS before
           FROM (pg_trigger t
             JOIN pg_proc p ON ((p.oid = t.tgfoid)))
          WHERE ((t.tgrelid = ANY (whole.tables)) AND (NOT t.tgisinternal) AND (t.tgparentid = (0)::oid) AND (t.tgfoid <> captured.tgfoid) AND (t.tgenabled <> 'D'::"char") AND (NOT t.tginitdeferred) AND (((t.tgtype)::integer & captured.kinds) <> 0) AND (((t.tgtype)::integer & 1) = 1) AND
                CASE
                    WHEN (((t.tgtype)::integer & 2) = 0) THEN captured.by_row
                    ELSE ((((t.tgtype)::integer & 20) <> 0) AND ((captured.kinds & 16) <> 0))
                END AND (regexp_replace(regexp_replace(p.prosrc, '/[*].*?[*]/'::text, ' '::text, 'g'::text), '--[^
]*'::text, ' '::text, 'g'::text) ~* format('(^|[^[:alnum:]_$])(%s)[[:space:]]+(only[[:space:]]+)?("?%s"?[.])?"?%s("|[^[:alnum:]_$.]|$)'::text,
                CASE
                    WHEN (((t.tgtype)::integer & 2) <> 0) THEN 'update'::text
                    ELSE (('insert[[:space:]]+into|merge[[:space:]]+into'::text ||
                    CASE
                        WHEN ((captured.kinds & 16) <> 0) THEN '|update'::text
                        ELSE ''::text
                    END) ||
                    CASE
                        WHEN ((captured.kinds & 8) <> 0) THEN '|delete[[:space:]]+from'::text
                        ELSE ''::text
                    END)
                END, regexp_replace((named.nspname)::text, '[^[:alnum:]_]'::text, '.'::text, 'g'::text), regexp_replace((class.relname)::text, '[^[:alnum:]_]'::text, '.'::text, 'g'::text))))) reentrant);

COMMENT ON VIEW outbox.captures IS 'The captured tables and their settings. problem: fix it by capturing the table again, enabling the trigger, or as it says; null if there is none.';

CREATE VIEW outbox.compatibility AS
 SELECT (18)::bigint AS oldest_program;

COMMENT ON VIEW outbox.compatibility IS 'oldest_program: the newest migration of the oldest program that may use this schema.';

CREATE TABLE outbox.cursor (
    step bigint NOT NULL,
    settled pg_snapshot NOT NULL,
    low bigint DEFAULT 0 NOT NULL,
    low_xid xid8 DEFAULT '0'::xid8 NOT NULL,
    window_end pg_snapshot,
    window_low bigint,
    window_low_xid xid8,
    page_after bigint,
    page_until bigint
)
WITH (fillfactor='50');

ALTER TABLE outbox.dead_letters ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.dead_letters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.declared_sinks (
    name text NOT NULL,
    CONSTRAINT declared_sinks_name_check CHECK ((name ~ '^[a-z][a-z0-9_-]{0,49}$'::text))
);

ALTER TABLE outbox.deliveries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.deliveries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.event_ids (
    id uuid NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='5000');

COMMENT ON TABLE outbox.event_ids IS 'Ids given to outbox.publish(id => ...). Publishing the same id twice is one event.';

CREATE TABLE outbox.routed_early (
    "position" bigint NOT NULL,
    created_at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

COMMENT ON TABLE outbox.routed_early IS 'Urgent events that were routed before their turn and that routing has not come to yet.';

CREATE TABLE outbox.starts (
    subscription_id bigint NOT NULL,
    since timestamp with time zone,
    settled pg_snapshot,
    window_end pg_snapshot,
    page_after bigint,
    until bigint,
    "position" bigint DEFAULT 0 NOT NULL,
    CONSTRAINT since_is_a_time CHECK (((since >= '0001-01-01 00:00:00+00'::timestamp with time zone) AND (since <= '9999-12-31 00:00:00+00'::timestamp with time zone)))
);

CREATE VIEW outbox.event_status AS
 SELECT event.id,
    event."position",
    event.topic,
    event.key,
    event.organization,
    event.created_at,
        CASE
            WHEN (owed.in_flight > 0) THEN 'processing'::text
            WHEN ((owed.waiting > 0) OR (held_back.rows > 0) OR (NOT routed.yes) OR wanted.still) THEN 'pending'::text
            WHEN (failed.letters > 0) THEN 'failed'::text
            ELSE 'completed'::text
        END AS status,
    (COALESCE(owed.waiting, (0)::bigint) + held_back.rows) AS waiting,
    COALESCE(owed.in_flight, (0)::bigint) AS in_flight,
    COALESCE(owed.attempts, 0) AS attempts,
    failed.letters AS dead_letters
   FROM (((((outbox.events event
     CROSS JOIN LATERAL ( SELECT (pg_visible_in_snapshot(event.xid, cursor.settled) OR ((cursor.window_end IS NOT NULL) AND pg_visible_in_snapshot(event.xid, cursor.window_end) AND (event."position" <= cursor.page_after)) OR (EXISTS ( SELECT
                   FROM outbox.routed_early early
                  WHERE (early."position" = event."position")))) AS yes
           FROM outbox.cursor cursor
          ORDER BY cursor.step DESC
         LIMIT 1) routed)
     CROSS JOIN LATERAL ( SELECT (EXISTS ( SELECT
                   FROM outbox.starts start
                  WHERE ((event."position" > start."position") AND ((start.until IS NULL) OR (event."position" <= start.until)) AND ((start.since IS NULL) OR (event.created_at >= start.since))))) AS still) wanted)
     LEFT JOIN ( SELECT one."position",
            (sum(one.waiting))::bigint AS waiting,
            (sum(one.in_flight))::bigint AS in_flight,
            max(one.attempts) AS attempts
           FROM ( SELECT delivery."position",
                    count(*) FILTER (WHERE ((delivery.lease_token IS NULL) OR (delivery.due_at <= now()))) AS waiting,
                    count(*) FILTER (WHERE ((delivery.lease_token IS NOT NULL) AND (delivery.due_at > now()))) AS in_flight,
                    max(delivery.attempt) AS attempts
                   FROM outbox.deliveries delivery
                  GROUP BY delivery."position"
                UNION ALL
                 SELECT pair."position",
                    count(*) FILTER (WHERE (page.due_at <= now())) AS count,
                    count(*) FILTER (WHERE (page.due_at > now())) AS count,
                    0
                   FROM (outbox.pages page
                     CROSS JOIN LATERAL outbox_internal.left_of(page.*) pair(subscription_id, "position", number))
                  GROUP BY pair."position") one
          GROUP BY one."position") owed ON ((owed."position" = event."position")))
     CROSS JOIN LATERAL ( SELECT count(*) AS rows
           FROM outbox.backlog backlog
          WHERE (backlog.positions @> event."position")) held_back)
     CROSS JOIN LATERAL ( SELECT count(*) AS letters
           FROM outbox.dead_letters letter
          WHERE (letter."position" = event."position")) failed);

COMMENT ON VIEW outbox.event_status IS 'One row per event, without its payload: pending (also while a backfill has not reached it), processing, completed (no delivery pending, also if no subscription matched) or failed (a dead letter).';

CREATE TABLE outbox.event_types (
    id bigint NOT NULL,
    topic text NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    schema jsonb DEFAULT 'true'::jsonb NOT NULL,
    mode text DEFAULT 'reject'::text NOT NULL,
    description text,
    upcast text,
    state_reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    changed xid8 DEFAULT pg_current_xact_id() NOT NULL
);

COMMENT ON TABLE outbox.event_types IS 'Schemas of payloads by topic pattern and version. Checked when an event is delivered.';

COMMENT ON COLUMN outbox.event_types.topic IS 'A topic pattern. The type applies to events whose topic matches and whose schema_version equals version.';

COMMENT ON COLUMN outbox.event_types.version IS 'Compared with the schema_version of an event, of which null counts as 1.';

COMMENT ON COLUMN outbox.event_types.schema IS 'A JSON Schema. true accepts every payload without reading it.';

COMMENT ON COLUMN outbox.event_types.mode IS 'reject: an event that does not fit becomes a dead letter; warn: it is delivered and counted.';

COMMENT ON COLUMN outbox.event_types.upcast IS 'A CEL expression that makes the payload of the next version. Null: no upcast.';

COMMENT ON COLUMN outbox.event_types.state_reason IS 'Why a relay cannot use the schema or the upcast. An invalid schema rejects nothing. Null: valid, or not checked yet.';

ALTER TABLE outbox.event_types ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.event_types_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.events_default (
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    "position" bigint NOT NULL,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    id uuid DEFAULT outbox.new_id() NOT NULL,
    topic outbox.topic NOT NULL,
    key outbox.key,
    payload outbox.payload NOT NULL,
    headers outbox.headers DEFAULT '{}'::jsonb NOT NULL,
    organization outbox.organization,
    source outbox.source,
    user_id outbox.user_id,
    priority outbox.priority DEFAULT 0 NOT NULL,
    deliver_after outbox.instant,
    schema_version integer
);

ALTER TABLE ONLY outbox.events_default REPLICA IDENTITY FULL;

ALTER TABLE outbox.events ALTER COLUMN "position" ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.events_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.forgotten (
    only_row boolean DEFAULT true NOT NULL,
    xid xid8,
    created_at timestamp with time zone NOT NULL,
    "position" bigint NOT NULL,
    CONSTRAINT forgotten_only_row_check CHECK (only_row)
);

COMMENT ON TABLE outbox.forgotten IS 'One row once something was removed of outbox.events: the highest transaction id, the newest time and the highest position of a removed event.';

CREATE TABLE outbox.gateways (
    name text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_at timestamp with time zone DEFAULT now() NOT NULL,
    connections integer NOT NULL,
    version text NOT NULL
);

COMMENT ON TABLE outbox.gateways IS 'Processes that serve live clients. Each reports every 5 s, and does not count after 15 s without a report.';

CREATE TABLE outbox.generation (
    only_row boolean DEFAULT true NOT NULL,
    value bigint NOT NULL,
    CONSTRAINT generation_only_row_check CHECK (only_row)
);

CREATE VIEW outbox.here AS
 SELECT control.system_identifier,
    base.oid AS database_oid,
    outbox_internal.timeline() AS timeline
   FROM (pg_control_system() control(pg_control_version, catalog_version_no, system_identifier, pg_control_last_modified)
     JOIN pg_database base ON ((base.datname = current_database())));

CREATE TABLE outbox.identity (
    system_identifier bigint,
    database_oid oid,
    environment text,
    timeline integer,
    set_back text,
    recorded_by xid8 DEFAULT pg_current_xact_id() NOT NULL
);

ALTER TABLE ONLY outbox.identity REPLICA IDENTITY FULL;

COMMENT ON TABLE outbox.identity IS 'The database that this outbox belongs to. See outbox.adopt.';

CREATE VIEW outbox.log_status AS
 WITH cursor AS MATERIALIZED (
         SELECT one.step,
            one.settled,
            one.low,
            one.low_xid,
            one.window_end,
            one.window_low,
            one.window_low_xid,
            one.page_after,
            one.page_until
           FROM outbox.cursor one
          ORDER BY one.step DESC
         LIMIT 1
        ), late(xid) AS MATERIALIZED (
         SELECT open.xid
           FROM (cursor
             CROSS JOIN LATERAL ( SELECT named.xid
                   FROM pg_snapshot_xip(cursor.settled) named(xid)
                UNION ALL
                 SELECT ((newer.xid)::text)::xid8 AS xid
                   FROM generate_series(((pg_snapshot_xmax(cursor.settled))::text)::bigint, ((cursor.low_xid)::text)::bigint) newer(xid)
                  WHERE (cursor.window_end IS NOT NULL)) open(xid))
          WHERE
                CASE
                    WHEN pg_visible_in_snapshot(open.xid, pg_current_snapshot()) THEN (pg_xact_status(open.xid) IS DISTINCT FROM 'aborted'::text)
                    ELSE NULL::boolean
                END
        ), unrouted AS (
         SELECT event.created_at
           FROM (cursor
             CROSS JOIN LATERAL ( SELECT one.created_at,
                    one.xid
                   FROM outbox.events one
                  WHERE (one."position" > GREATEST(cursor.page_after, cursor.low))
                  ORDER BY one."position"
                 LIMIT 100000) event)
          WHERE ((cursor.window_end IS NOT NULL) AND (NOT pg_visible_in_snapshot(event.xid, cursor.settled)))
        UNION ALL
         SELECT event.created_at
           FROM (cursor
             CROSS JOIN LATERAL ( SELECT one.created_at
                   FROM outbox.events one
                  WHERE (one.xid >= pg_snapshot_xmax(cursor.settled))
                  ORDER BY one.xid, one."position"
                 LIMIT 100000) event)
          WHERE (cursor.window_end IS NULL)
        UNION ALL
         SELECT event.created_at
           FROM ((cursor
             CROSS JOIN late)
             CROSS JOIN LATERAL ( SELECT one.created_at
                   FROM outbox.events one
                  WHERE ((one.xid >= late.xid) AND (one.xid <= late.xid) AND (one."position" > COALESCE(cursor.page_after, (0)::bigint)) AND ((cursor.window_end IS NULL) OR (one."position" <= cursor.low)))
                  ORDER BY one.xid, one."position"
                 LIMIT 100000) event)
        )
 SELECT count(*) AS unrouted,
    (now() - min(unrouted.created_at)) AS oldest_age
   FROM unrouted;

COMMENT ON VIEW outbox.log_status IS 'One row: how many events of the log are not routed yet (counting stops at 100,000), and the age of the oldest.';

CREATE TABLE outbox.migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);

CREATE TABLE outbox.order_leases (
    subscription_id bigint NOT NULL,
    lease_token uuid NOT NULL,
    due_at timestamp with time zone NOT NULL,
    relay text NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE outbox.organization_limits (
    organization text NOT NULL,
    rate text NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE outbox.organization_limits IS 'The most that is sent for an organization, for all its subscriptions and by all relays together. Written by operators, with outbox.limit_organization().';

CREATE VIEW outbox.owed AS
 SELECT delivery.subscription_id,
    delivery."position",
    delivery.owed_since,
    delivery.due_at,
    delivery.lease_token,
    delivery.attempt,
    'delivery'::text AS place
   FROM outbox.deliveries delivery
UNION ALL
 SELECT pair.subscription_id,
    pair."position",
    page.owed_since[1] AS owed_since,
    page.due_at,
    page.lease_token,
    1 AS attempt,
    'page'::text AS place
   FROM (outbox.pages page
     CROSS JOIN LATERAL outbox_internal.left_of(page.*) pair(subscription_id, "position", number))
UNION ALL
 SELECT backlog.subscription_id,
    at."position",
    backlog.owed_since,
    backlog.owed_since AS due_at,
    NULL::uuid AS lease_token,
    0 AS attempt,
    'backlog'::text AS place
   FROM ((outbox.backlog backlog
     CROSS JOIN LATERAL unnest(backlog.positions) span(span))
     CROSS JOIN LATERAL generate_series(lower(span.span), (upper(span.span) - 1)) at("position"));

COMMENT ON VIEW outbox.owed IS 'One row for each event owed to a subscription: in the hands of a relay (lease_token, due_at: when the lease ends), or waiting. Not for large backlogs.';

CREATE TABLE outbox.paces (
    organization text DEFAULT ''::text NOT NULL,
    subscription_id bigint DEFAULT 0 NOT NULL,
    next_at timestamp with time zone DEFAULT '2000-01-01 00:00:00+00'::timestamp with time zone NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE outbox.pages ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.pages_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.parked_keys (
    subscription_id bigint NOT NULL,
    key text NOT NULL,
    parked_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    dead_letter_id bigint NOT NULL
);

CREATE VIEW outbox.parked AS
 SELECT subscription.name AS subscription,
    parked.key,
    parked.parked_at,
    parked.dead_letter_id,
    letter.event_id,
    letter.topic,
    letter.reason,
    letter.status,
    letter.answer,
    ( SELECT count(*) AS count
           FROM outbox.deliveries delivery
          WHERE ((delivery.subscription_id = parked.subscription_id) AND (delivery.key = parked.key))) AS waiting
   FROM ((outbox.parked_keys parked
     JOIN outbox.subscriptions subscription ON ((subscription.id = parked.subscription_id)))
     LEFT JOIN outbox.dead_letters letter ON ((letter.id = parked.dead_letter_id)));

COMMENT ON VIEW outbox.parked IS 'One row for each key that is parked: the dead letter that parked it, and how many later events of the key wait. outbox.redrive or outbox.discard of that dead letter lets the key go on; so does outbox.unpark.';

CREATE TABLE outbox.relay_subscriptions (
    relay text NOT NULL,
    subscription_id bigint NOT NULL,
    delivered bigint NOT NULL,
    failed bigint NOT NULL,
    delivered_lately bigint DEFAULT 0 NOT NULL,
    filter_errors bigint DEFAULT 0 NOT NULL,
    last_filter_error text,
    breaker text NOT NULL,
    reported_at timestamp with time zone NOT NULL,
    CONSTRAINT relay_subscriptions_breaker_check CHECK ((breaker = ANY (ARRAY['closed'::text, 'open'::text, 'half_open'::text])))
)
WITH (fillfactor='50');

CREATE TABLE outbox.relays (
    name text NOT NULL,
    version text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    seen_at timestamp with time zone NOT NULL,
    permits integer NOT NULL,
    leased_ahead integer NOT NULL,
    in_flight integer NOT NULL,
    unsettled integer NOT NULL,
    no_progress_since timestamp with time zone,
    no_progress_why text
)
WITH (fillfactor='50');

CREATE VIEW outbox.replay_status AS
 SELECT replay.id,
    subscription.name AS subscription,
    replay.state,
    replay.since,
    replay.until,
    replay.topic,
    replay.event,
    replay.rate,
    round(
        CASE
            WHEN (replay.state = 'done'::text) THEN (1)::numeric
            WHEN (replay.until_position <= replay.first_position) THEN (0)::numeric
            ELSE (((replay."position" - replay.first_position))::numeric / ((replay.until_position - replay.first_position))::numeric)
        END, 4) AS progress,
    replay.seen,
    GREATEST(((replay.queued - waiting.count) - given_up.count), (0)::bigint) AS sent,
    waiting.count AS waiting,
    given_up.count AS failed,
    replay.started_by,
    replay.started_at,
    replay.ended_at
   FROM (((outbox.replays replay
     JOIN outbox.subscriptions subscription ON ((subscription.id = replay.subscription_id)))
     CROSS JOIN LATERAL ( SELECT count(*) AS count
           FROM outbox.deliveries delivery
          WHERE (delivery.replay_id = replay.id)) waiting)
     CROSS JOIN LATERAL ( SELECT count(*) AS count
           FROM outbox.dead_letters letter
          WHERE (letter.replay_id = replay.id)) given_up);

COMMENT ON VIEW outbox.replay_status IS 'One row per replay. state: running, paused, done or cancelled. progress: how much of the log was read, 0 to 1. seen: events that were looked at. waiting: deliveries that are queued, in flight or wait for a retry. failed: dead letters that are still there. sent: all other deliveries.';

ALTER TABLE outbox.replays ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.replays_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.retention_kept (
    partition text NOT NULL,
    log text NOT NULL,
    since timestamp with time zone NOT NULL,
    kept_by text NOT NULL
);

COMMENT ON TABLE outbox.retention_kept IS 'Partitions that are due to be dropped and stay, with the reason. See outbox.retention_status.';

CREATE TABLE outbox.retention_marks (
    at timestamp with time zone NOT NULL,
    xid xid8 NOT NULL
);

COMMENT ON TABLE outbox.retention_marks IS 'Transaction ids by time, a few for each partition of outbox.events.';

CREATE TABLE outbox.retention_periods (
    log text NOT NULL,
    period interval NOT NULL,
    laggard text,
    looked_at timestamp with time zone NOT NULL,
    steady_since timestamp with time zone NOT NULL,
    problem text
);

COMMENT ON TABLE outbox.retention_periods IS 'For how long relays keep the events, attempts, event_ids and dead_letters, as said by the relay that looked last.';

CREATE VIEW outbox.retention_status AS
 SELECT known.log,
    (class.relname)::text AS partition,
    NULLIF(part.low, '-infinity'::timestamp with time zone) AS "from",
    NULLIF(part.high, 'infinity'::timestamp with time zone) AS "to",
    pg_total_relation_size(part.relation) AS bytes,
    (part.high + period.period) AS due,
    kept.since AS kept_since,
    kept.kept_by
   FROM ((((( VALUES ('events'::text), ('attempts'::text)) known(log)
     CROSS JOIN LATERAL outbox_internal.log_partitions(known.log) part(relation, low, high, is_plain))
     JOIN pg_class class ON ((class.oid = (part.relation)::oid)))
     LEFT JOIN outbox.retention_periods period ON ((period.log = known.log)))
     LEFT JOIN outbox.retention_kept kept ON ((kept.partition = class.relname)))
UNION ALL
 SELECT known.log,
    class.relname AS partition,
    NULL::timestamp with time zone AS "from",
    NULL::timestamp with time zone AS "to",
    pg_total_relation_size((class.oid)::regclass) AS bytes,
    NULL::timestamp with time zone AS due,
    kept.since AS kept_since,
    kept.kept_by
   FROM (((( VALUES ('events'::text), ('attempts'::text)) known(log)
     JOIN pg_partitioned_table tree ON ((tree.partrelid = (to_regclass(('outbox.'::text || known.log)))::oid)))
     JOIN pg_class class ON ((class.oid = tree.partdefid)))
     LEFT JOIN outbox.retention_kept kept ON ((kept.partition = class.relname)))
  ORDER BY 1, 4;

COMMENT ON VIEW outbox.retention_status IS 'One row for each partition of outbox.events and outbox.attempts: the time that it covers, its size, when it is due to be dropped, and what keeps it although it is due.';

CREATE VIEW outbox.sinks AS
 SELECT known.sink AS name,
    true AS is_built_in,
    COALESCE(jsonb_object_agg(known.field, (array_to_string(known.types, ' or '::text) ||
        CASE
            WHEN known.is_required THEN ', required'::text
            ELSE ''::text
        END)) FILTER (WHERE (known.field IS NOT NULL)), '{}'::jsonb) AS fields
   FROM outbox_internal.sink_fields() known(sink, field, types, is_required)
  GROUP BY known.sink
UNION ALL
 SELECT declared.name,
    false AS is_built_in,
    NULL::jsonb AS fields
   FROM outbox.declared_sinks declared
  WHERE (NOT (declared.name IN ( SELECT known.sink
           FROM outbox_internal.sink_fields() known(sink, field, types, is_required))));

COMMENT ON VIEW outbox.sinks IS 'The sinks that a subscription can name, and the fields of their configs. fields is null for sinks of other programs, which outbox.declare_sink made known.';

CREATE TABLE outbox.subscription_health (
    subscription_id bigint NOT NULL,
    good_at timestamp with time zone,
    failing_since timestamp with time zone,
    failed_at timestamp with time zone
)
WITH (fillfactor='50');

COMMENT ON TABLE outbox.subscription_health IS 'Since when subscriptions with retry.disable_after have failed without a success.';

CREATE VIEW outbox.subscription_status AS
 SELECT subscription.name,
    subscription.sink,
    subscription.organization,
    subscription.active,
    subscription.state,
    subscription.state_reason,
    pause.until AS paused_until,
    COALESCE(owed.backlog, (0)::bigint) AS backlog,
    COALESCE(owed.in_flight, (0)::bigint) AS in_flight,
    COALESCE(owed.retrying, (0)::bigint) AS retrying,
    (now() - owed.oldest) AS oldest_age,
    ( SELECT count(*) AS count
           FROM outbox.dead_letters letter
          WHERE (letter.subscription_id = subscription.id)) AS dead_letters,
    reported.delivered,
    reported.failed,
    round((COALESCE(reported.delivered_lately, (0)::numeric) / NULLIF(((COALESCE(reported.delivered_lately, (0)::numeric) + (COALESCE(owed.retrying, (0)::bigint))::numeric) + (COALESCE(given_up.lately, (0)::bigint))::numeric), (0)::numeric)), 4) AS success_rate,
    COALESCE(reported.breaker, 'closed'::text) AS breaker,
    reported.filter_errors,
    reported.last_filter_error
   FROM ((((outbox.subscriptions subscription
     LEFT JOIN outbox.asked_pauses pause ON ((pause.subscription_id = subscription.id)))
     LEFT JOIN ( SELECT one.subscription_id,
            (sum(one.owed))::bigint AS backlog,
            (sum(one.leased))::bigint AS in_flight,
            (sum(one.retrying))::bigint AS retrying,
            min(one.oldest) AS oldest
           FROM ( SELECT delivery.subscription_id,
                    count(*) AS owed,
                    count(*) FILTER (WHERE ((delivery.lease_token IS NOT NULL) AND (delivery.due_at > now()))) AS leased,
                    count(*) FILTER (WHERE ((delivery.attempt > 0) AND (delivery.lease_token IS NULL) AND (delivery.due_at < outbox_internal.never()))) AS retrying,
                    min(delivery.owed_since) FILTER (WHERE (delivery.owed_since <= now())) AS oldest
                   FROM outbox.deliveries delivery
                  GROUP BY delivery.subscription_id
                UNION ALL
                 SELECT backlog.subscription_id,
                    sum(outbox_internal.count_positions(backlog.positions)) AS sum,
                    0,
                    0,
                    min(backlog.owed_since) AS min
                   FROM outbox.backlog backlog
                  GROUP BY backlog.subscription_id
                UNION ALL
                 SELECT pair.subscription_id,
                    count(*) AS count,
                    count(*) FILTER (WHERE (page.due_at > now())) AS count,
                    0,
                    min(( SELECT min(since.since) AS min
                           FROM unnest(page.owed_since) since(since))) AS min
                   FROM (outbox.pages page
                     CROSS JOIN LATERAL outbox_internal.left_of(page.*) pair(subscription_id, "position", number))
                  GROUP BY pair.subscription_id) one
          GROUP BY one.subscription_id) owed ON ((owed.subscription_id = subscription.id)))
     LEFT JOIN ( SELECT report.subscription_id,
            (sum(report.delivered))::bigint AS delivered,
            (sum(report.failed))::bigint AS failed,
            sum(report.delivered_lately) AS delivered_lately,
            (sum(report.filter_errors))::bigint AS filter_errors,
            (array_agg(report.last_filter_error ORDER BY report.reported_at DESC) FILTER (WHERE (report.last_filter_error IS NOT NULL)))[1] AS last_filter_error,
                CASE
                    WHEN bool_or((report.breaker = 'open'::text)) THEN 'open'::text
                    WHEN bool_or((report.breaker = 'half_open'::text)) THEN 'half_open'::text
                    ELSE 'closed'::text
                END AS breaker
           FROM (outbox.relay_subscriptions report
             JOIN outbox.relays relay ON (((relay.name = report.relay) AND (relay.seen_at > (now() - '00:01:00'::interval)))))
          GROUP BY report.subscription_id) reported ON ((reported.subscription_id = subscription.id)))
     LEFT JOIN ( SELECT letter.subscription_id,
            count(*) AS lately
           FROM outbox.dead_letters letter
          WHERE ((letter.died_at > (now() - '00:15:00'::interval)) AND (letter.attempts > 0))
          GROUP BY letter.subscription_id) given_up ON ((given_up.subscription_id = subscription.id)));

COMMENT ON VIEW outbox.subscription_status IS 'One row per subscription: pending deliveries, age of the oldest, and reports of running relays (breaker, filter errors). success_rate: of what was delivered or given up in the last 15 minutes and of what is retried, the share whose last attempt succeeded.';

ALTER TABLE outbox.subscriptions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME outbox.subscriptions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE outbox.token_key (
    only_row boolean DEFAULT true NOT NULL,
    key bytea DEFAULT sha256(convert_to(((gen_random_uuid())::text || (gen_random_uuid())::text), 'UTF8'::name)) NOT NULL,
    CONSTRAINT token_key_only_row_check CHECK (only_row)
);

COMMENT ON TABLE outbox.token_key IS 'Signs the tokens of live clients. With another key all tokens are refused.';

ALTER TABLE ONLY outbox.attempts ATTACH PARTITION outbox.attempts_default DEFAULT;

ALTER TABLE ONLY outbox.events ATTACH PARTITION outbox.events_default DEFAULT;

ALTER TABLE ONLY outbox.announcements
    ADD CONSTRAINT announcements_pkey PRIMARY KEY (subscription_id, what);

ALTER TABLE ONLY outbox.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.backlog
    ADD CONSTRAINT backlog_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.beginnings
    ADD CONSTRAINT beginnings_pkey PRIMARY KEY (subscription_id);

ALTER TABLE ONLY outbox.cursor
    ADD CONSTRAINT cursor_pkey PRIMARY KEY (step);

ALTER TABLE ONLY outbox.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.declared_sinks
    ADD CONSTRAINT declared_sinks_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.deliveries
    ADD CONSTRAINT deliveries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.event_ids
    ADD CONSTRAINT event_ids_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.event_types
    ADD CONSTRAINT event_types_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.event_types
    ADD CONSTRAINT event_types_topic_version_key UNIQUE (topic, version);

ALTER TABLE ONLY outbox.forgotten
    ADD CONSTRAINT forgotten_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY outbox.gateways
    ADD CONSTRAINT gateways_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.generation
    ADD CONSTRAINT generation_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY outbox.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY outbox.order_leases
    ADD CONSTRAINT order_leases_pkey PRIMARY KEY (subscription_id);

ALTER TABLE ONLY outbox.organization_limits
    ADD CONSTRAINT organization_limits_pkey PRIMARY KEY (organization);

ALTER TABLE ONLY outbox.paces
    ADD CONSTRAINT paces_pkey PRIMARY KEY (organization, subscription_id, next_at);

ALTER TABLE ONLY outbox.pages
    ADD CONSTRAINT pages_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.parked_keys
    ADD CONSTRAINT parked_keys_pkey PRIMARY KEY (subscription_id, key);

ALTER TABLE ONLY outbox.pauses
    ADD CONSTRAINT pauses_pkey PRIMARY KEY (subscription_id);

ALTER TABLE ONLY outbox.relay_subscriptions
    ADD CONSTRAINT relay_subscriptions_pkey PRIMARY KEY (relay, subscription_id);

ALTER TABLE ONLY outbox.relays
    ADD CONSTRAINT relays_pkey PRIMARY KEY (name);

ALTER TABLE ONLY outbox.replays
    ADD CONSTRAINT replays_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.retention_kept
    ADD CONSTRAINT retention_kept_pkey PRIMARY KEY (partition);

ALTER TABLE ONLY outbox.retention_marks
    ADD CONSTRAINT retention_marks_pkey PRIMARY KEY (at);

ALTER TABLE ONLY outbox.retention_periods
    ADD CONSTRAINT retention_periods_pkey PRIMARY KEY (log);

ALTER TABLE ONLY outbox.routed_early
    ADD CONSTRAINT routed_early_pkey PRIMARY KEY ("position");

ALTER TABLE ONLY outbox.starts
    ADD CONSTRAINT starts_pkey PRIMARY KEY (subscription_id);

ALTER TABLE ONLY outbox.subscription_health
    ADD CONSTRAINT subscription_health_pkey PRIMARY KEY (subscription_id);

ALTER TABLE ONLY outbox.subscriptions
    ADD CONSTRAINT subscriptions_name_key UNIQUE (name);

ALTER TABLE ONLY outbox.subscriptions
    ADD CONSTRAINT subscriptions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY outbox.token_key
    ADD CONSTRAINT token_key_pkey PRIMARY KEY (only_row);

CREATE INDEX attempts_at ON ONLY outbox.attempts USING brin (at);

CREATE INDEX attempts_default_at_idx ON outbox.attempts_default USING brin (at);

CREATE INDEX attempts_position ON ONLY outbox.attempts USING btree ("position");

CREATE INDEX attempts_default_position_idx ON outbox.attempts_default USING btree ("position");

CREATE INDEX audit_subscription ON outbox.audit USING btree (subscription, id);

CREATE INDEX backlog_order ON outbox.backlog USING btree (subscription_id, first_position, id) WHERE is_ordered;

CREATE INDEX backlog_subscription ON outbox.backlog USING btree (subscription_id, is_suspect, id);

CREATE INDEX dead_letters_died_at ON outbox.dead_letters USING btree (died_at, id);

CREATE INDEX dead_letters_event ON outbox.dead_letters USING btree (event_id);

CREATE INDEX dead_letters_position ON outbox.dead_letters USING btree ("position", id);

CREATE INDEX dead_letters_replay ON outbox.dead_letters USING btree (replay_id) WHERE (replay_id IS NOT NULL);

CREATE INDEX dead_letters_subscription ON outbox.dead_letters USING btree (subscription_id, "position", id);

CREATE INDEX deliveries_asked ON outbox.deliveries USING btree (subscription_id, id) WHERE asked;

CREATE INDEX deliveries_due ON outbox.deliveries USING btree (subscription_id, due_at, id);

CREATE INDEX deliveries_key ON outbox.deliveries USING btree (subscription_id, key, "position", id) WHERE (key IS NOT NULL);

CREATE INDEX deliveries_replay ON outbox.deliveries USING btree (replay_id) WHERE (replay_id IS NOT NULL);

CREATE INDEX event_ids_created_at ON outbox.event_ids USING btree (created_at);

CREATE INDEX events_created_at ON ONLY outbox.events USING brin (created_at);

CREATE INDEX events_default_created_at_idx ON outbox.events_default USING brin (created_at);

CREATE INDEX events_position ON ONLY outbox.events USING btree ("position");

CREATE INDEX events_default_position_idx ON outbox.events_default USING btree ("position");

CREATE INDEX events_xid_position ON ONLY outbox.events USING btree (xid, "position");

CREATE INDEX events_default_xid_position_idx ON outbox.events_default USING btree (xid, "position");

CREATE INDEX events_urgent ON ONLY outbox.events USING btree (xid, "position") WHERE ((priority)::integer > 0);

CREATE INDEX events_default_xid_position_idx1 ON outbox.events_default USING btree (xid, "position") WHERE ((priority)::integer > 0);

CREATE UNIQUE INDEX identity_only_row ON outbox.identity USING btree ((true));

CREATE INDEX parked_keys_dead_letter ON outbox.parked_keys USING btree (dead_letter_id);

CREATE INDEX pauses_asked_at ON outbox.pauses USING btree (asked_at);

CREATE INDEX replays_running ON outbox.replays USING btree (id) WHERE (state = 'running'::text);

CREATE INDEX replays_subscription ON outbox.replays USING btree (subscription_id, state);

ALTER INDEX outbox.attempts_at ATTACH PARTITION outbox.attempts_default_at_idx;

ALTER INDEX outbox.attempts_position ATTACH PARTITION outbox.attempts_default_position_idx;

ALTER INDEX outbox.events_created_at ATTACH PARTITION outbox.events_default_created_at_idx;

ALTER INDEX outbox.events_position ATTACH PARTITION outbox.events_default_position_idx;

ALTER INDEX outbox.events_xid_position ATTACH PARTITION outbox.events_default_xid_position_idx;

ALTER INDEX outbox.events_urgent ATTACH PARTITION outbox.events_default_xid_position_idx1;

CREATE TRIGGER announce_change AFTER UPDATE ON outbox.subscriptions FOR EACH ROW WHEN (((old.active IS DISTINCT FROM new.active) OR (old.state IS DISTINCT FROM new.state))) EXECUTE FUNCTION outbox_internal.announce_change();

CREATE TRIGGER audit_limit AFTER INSERT OR DELETE OR UPDATE ON outbox.organization_limits FOR EACH ROW EXECUTE FUNCTION outbox_internal.audit_limit();

CREATE TRIGGER audit_subscription AFTER INSERT OR DELETE OR UPDATE ON outbox.subscriptions FOR EACH ROW EXECUTE FUNCTION outbox_internal.audit_subscription();

CREATE CONSTRAINT TRIGGER bump_generation AFTER INSERT OR DELETE OR UPDATE OF topic, version, schema, mode, description, upcast ON outbox.event_types DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION outbox_internal.bump_generation();

CREATE CONSTRAINT TRIGGER bump_generation AFTER INSERT OR DELETE OR UPDATE ON outbox.organization_limits DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION outbox_internal.bump_generation();

CREATE CONSTRAINT TRIGGER bump_generation AFTER INSERT OR DELETE OR UPDATE ON outbox.subscriptions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION outbox_internal.bump_generation();

CREATE TRIGGER check_event_type BEFORE INSERT OR UPDATE ON outbox.event_types FOR EACH ROW EXECUTE FUNCTION outbox_internal.check_event_type();

CREATE TRIGGER check_organization_limit BEFORE INSERT OR UPDATE ON outbox.organization_limits FOR EACH ROW EXECUTE FUNCTION outbox_internal.check_organization_limit();

CREATE TRIGGER check_subscription BEFORE INSERT OR UPDATE ON outbox.subscriptions FOR EACH ROW EXECUTE FUNCTION outbox_internal.check_subscription();

CREATE TRIGGER follow_ordering AFTER UPDATE ON outbox.subscriptions FOR EACH ROW WHEN ((old.ordering IS DISTINCT FROM new.ordering)) EXECUTE FUNCTION outbox_internal.follow_ordering();

CREATE TRIGGER forget_deleted AFTER DELETE ON outbox.events REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.forget_deleted();

CREATE TRIGGER forget_deleted AFTER DELETE ON outbox.events_default REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.forget_deleted();

CREATE TRIGGER forget_order AFTER DELETE ON outbox.subscriptions FOR EACH ROW EXECUTE FUNCTION outbox_internal.forget_order();

CREATE TRIGGER forget_truncated BEFORE TRUNCATE ON outbox.events FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.forget_truncated();

CREATE TRIGGER forget_truncated BEFORE TRUNCATE ON outbox.events_default FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.forget_truncated();

CREATE TRIGGER make_pace AFTER INSERT OR DELETE OR UPDATE ON outbox.organization_limits FOR EACH ROW EXECUTE FUNCTION outbox_internal.make_pace();

CREATE TRIGGER make_pace AFTER INSERT OR UPDATE OF rate ON outbox.subscriptions FOR EACH ROW WHEN ((new.rate IS NOT NULL)) EXECUTE FUNCTION outbox_internal.make_pace();

CREATE TRIGGER record_beginning AFTER INSERT ON outbox.subscriptions FOR EACH ROW EXECUTE FUNCTION outbox_internal.record_beginning();

CREATE TRIGGER record_start AFTER INSERT ON outbox.starts FOR EACH ROW EXECUTE FUNCTION outbox_internal.record_start();

CREATE TRIGGER record_writer BEFORE UPDATE ON outbox.identity FOR EACH ROW EXECUTE FUNCTION outbox_internal.record_writer();

CREATE TRIGGER remove_pace AFTER DELETE ON outbox.subscriptions FOR EACH ROW EXECUTE FUNCTION outbox_internal.make_pace();

CREATE CONSTRAINT TRIGGER repeat_step AFTER UPDATE ON outbox.subscriptions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (((old.ordering = 'none'::text) AND (new.ordering = 'key'::text))) EXECUTE FUNCTION outbox_internal.repeat_step();

CREATE TRIGGER retry_after_correction AFTER UPDATE ON outbox.subscriptions FOR EACH ROW WHEN (((old.sink IS DISTINCT FROM new.sink) OR (old.config IS DISTINCT FROM new.config))) EXECUTE FUNCTION outbox_internal.retry_after_correction();

CREATE TRIGGER ring_doorbell AFTER INSERT ON outbox.events FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.ring_doorbell();

CREATE TRIGGER ring_event_types AFTER INSERT OR DELETE OR UPDATE OF topic, version, schema, mode, description, upcast ON outbox.event_types FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.ring_subscriptions();

CREATE TRIGGER ring_subscriptions AFTER INSERT OR DELETE OR UPDATE ON outbox.organization_limits FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.ring_subscriptions();

CREATE TRIGGER ring_subscriptions AFTER INSERT OR DELETE OR UPDATE ON outbox.subscriptions FOR EACH STATEMENT EXECUTE FUNCTION outbox_internal.ring_subscriptions();

ALTER TABLE ONLY outbox.beginnings
    ADD CONSTRAINT beginnings_subscription_id_fkey FOREIGN KEY (subscription_id) REFERENCES outbox.subscriptions(id) ON DELETE CASCADE;

ALTER TABLE ONLY outbox.replays
    ADD CONSTRAINT replays_subscription_id_fkey FOREIGN KEY (subscription_id) REFERENCES outbox.subscriptions(id) ON DELETE CASCADE;

ALTER TABLE ONLY outbox.starts
    ADD CONSTRAINT starts_subscription_id_fkey FOREIGN KEY (subscription_id) REFERENCES outbox.subscriptions(id) ON DELETE CASCADE;

GRANT USAGE ON SCHEMA outbox TO outbox_publisher;
GRANT USAGE ON SCHEMA outbox TO outbox_relay;
GRANT USAGE ON SCHEMA outbox TO outbox_admin;
GRANT USAGE ON SCHEMA outbox TO outbox_monitor;

GRANT USAGE ON SCHEMA outbox_internal TO outbox_publisher;
GRANT USAGE ON SCHEMA outbox_internal TO outbox_relay;
GRANT USAGE ON SCHEMA outbox_internal TO outbox_admin;
GRANT USAGE ON SCHEMA outbox_internal TO outbox_monitor;

REVOKE ALL ON FUNCTION outbox_internal.headers_are_valid(headers jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.headers_are_valid(headers jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.headers_are_valid(headers jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.headers_are_valid(headers jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.headers_are_valid(headers jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.refuse(field text, value anyelement) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.refuse(field text, value anyelement) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.refuse(field text, value anyelement) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.refuse(field text, value anyelement) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.refuse(field text, value anyelement) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox.adopt(keep_pending boolean, environment text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.adopt(keep_pending boolean, environment text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.bridge("table" regclass, topic text, key text, payload text, id text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.bridge("table" regclass, topic text, key text, payload text, id text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.bridge("table" regclass, topic text, key text, payload text, id text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.cancel(subscription text, topic text, event uuid, error_like text, max_rows integer, dead_letters boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.cancel(subscription text, topic text, event uuid, error_like text, max_rows integer, dead_letters boolean) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.cancel_replay(id bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.cancel_replay(id bigint) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.capture("table" regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.capture("table" regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.capture("table" regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.declare_sink(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.declare_sink(name text) TO outbox_relay;
GRANT ALL ON FUNCTION outbox.declare_sink(name text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.define_event_type(topic text, version integer, schema jsonb, mode text, description text, upcast text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.define_event_type(topic text, version integer, schema jsonb, mode text, description text, upcast text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.discard(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.discard(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.drop_event_type(topic text, version integer) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.drop_event_type(topic text, version integer) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.explain(event uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.explain(event uuid) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.grant_roles() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.grant_roles() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.new_id() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.new_id() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.new_id() TO outbox_admin;

GRANT SELECT ON TABLE outbox.events TO outbox_relay;
GRANT SELECT ON TABLE outbox.events TO outbox_admin;

GRANT INSERT(id) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(topic) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(key) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(payload) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(headers) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(organization) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(source) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(user_id) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(priority) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(deliver_after) ON TABLE outbox.events TO outbox_publisher;

GRANT INSERT(schema_version) ON TABLE outbox.events TO outbox_publisher;

REVOKE ALL ON FUNCTION outbox.latest(topics text[], since timestamp with time zone, organization text, max_events integer) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.latest(topics text[], since timestamp with time zone, organization text, max_events integer) TO outbox_relay;
GRANT ALL ON FUNCTION outbox.latest(topics text[], since timestamp with time zone, organization text, max_events integer) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.limit_organization(organization text, rate text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.limit_organization(organization text, rate text) TO outbox_admin;

GRANT SELECT,INSERT ON TABLE outbox.dead_letters TO outbox_relay;
GRANT SELECT ON TABLE outbox.dead_letters TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.matching_dead_letters(subscription text, topic text, error_like text, since timestamp with time zone, id bigint, until timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.matching_dead_letters(subscription text, topic text, error_like text, since timestamp with time zone, id bigint, until timestamp with time zone) TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.pages TO outbox_relay;
GRANT SELECT ON TABLE outbox.pages TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.left_of(page outbox.pages) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.left_of(page outbox.pages) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.left_of(page outbox.pages) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.left_of(page outbox.pages) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.left_of(page outbox.pages) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.never() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.never() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.never() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.never() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.never() TO outbox_relay;

GRANT SELECT,INSERT ON TABLE outbox.attempts TO outbox_relay;
GRANT SELECT ON TABLE outbox.attempts TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.backlog TO outbox_relay;
GRANT SELECT ON TABLE outbox.backlog TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.deliveries TO outbox_relay;
GRANT SELECT ON TABLE outbox.deliveries TO outbox_admin;

GRANT SELECT ON TABLE outbox.subscriptions TO outbox_relay;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.subscriptions TO outbox_admin;

GRANT UPDATE(state) ON TABLE outbox.subscriptions TO outbox_relay;

GRANT UPDATE(state_reason) ON TABLE outbox.subscriptions TO outbox_relay;

GRANT UPDATE(owed_until) ON TABLE outbox.subscriptions TO outbox_relay;

GRANT SELECT ON TABLE outbox.waiting TO outbox_relay;
GRANT SELECT ON TABLE outbox.waiting TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.matching_deliveries(subscription text, topic text, event uuid, error_like text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.matching_deliveries(subscription text, topic text, event uuid, error_like text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.pause(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.pause(name text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.pause_replay(id bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.pause_replay(id bigint) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.publish(topic text, payload jsonb, key text, headers jsonb, organization text, id uuid, priority integer, deliver_after timestamp with time zone, source text, user_id text, schema_version integer) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.publish(topic text, payload jsonb, key text, headers jsonb, organization text, id uuid, priority integer, deliver_after timestamp with time zone, source text, user_id text, schema_version integer) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.publish(topic text, payload jsonb, key text, headers jsonb, organization text, id uuid, priority integer, deliver_after timestamp with time zone, source text, user_id text, schema_version integer) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.published(topic text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.published(topic text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.published(topic text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.redrive(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.redrive(subscription text, topic text, error_like text, since timestamp with time zone, max_rows integer, id bigint, until timestamp with time zone) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.release("table" regclass) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.release("table" regclass) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.release("table" regclass) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.resume(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.resume(name text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.resume_replay(id bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.resume_replay(id bigint) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.retry(subscription text, topic text, event uuid, error_like text, max_rows integer) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.retry(subscription text, topic text, event uuid, error_like text, max_rows integer) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.subscribe(name text, topics text[], sink text, config jsonb, filter text, transform text, organization text, ordering text, retry jsonb, keys text[], max_in_flight integer, match jsonb, start text, schema_version integer, on_exhausted text, rate text, "coalesce" text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.subscribe(name text, topics text[], sink text, config jsonb, filter text, transform text, organization text, ordering text, retry jsonb, keys text[], max_in_flight integer, match jsonb, start text, schema_version integer, on_exhausted text, rate text, "coalesce" text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.topic_matches(pattern text, topic text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.topic_matches(pattern text, topic text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.uninstall(confirm text, force boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.uninstall(confirm text, force boolean) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.unpark(subscription text, key text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.unpark(subscription text, key text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.unsubscribe(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.unsubscribe(name text) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox.wait(event uuid, timeout interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox.wait(event uuid, timeout interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox.wait(event uuid, timeout interval) TO outbox_relay;
GRANT ALL ON FUNCTION outbox.wait(event uuid, timeout interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox.wait(event uuid, timeout interval) TO outbox_monitor;

REVOKE ALL ON FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.add_partition(log text, low timestamp with time zone, high timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.announce(what text, subscription text, organization text, reason text, details jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.announce_change() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.announce_change() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.ask_of_log() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.ask_of_log() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.ask_of_log() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.ask_of_log() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.ask_of_log() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.attach_capture(relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.audit_limit() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.audit_limit() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.audit_replay(action text, id bigint, rows bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION outbox_internal.audit_subscription() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.audit_subscription() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.border_after(at timestamp with time zone, width interval) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.bridge_json(value text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.bridge_json(value text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.bridge_json(value text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.bridge_json(value text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.bridge_json(value text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.bridge_rows() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.bridge_rows() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.bridge_rows() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.bridge_rows() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.bridge_rows() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.bridge_topic(value text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.bridge_topic(value text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.bridge_topic(value text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.bridge_topic(value text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.bridge_topic(value text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.bump_generation() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.bump_generation() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.call_function(function text, pages bigint[], numbers bigint[], lease_tokens uuid[], events text[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_changes() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_changes() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_changes() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_changes() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_changes() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_expression(kind oid, value text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_expression(kind oid, value text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_expression(kind oid, value text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_expression(kind oid, value text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_expression(kind oid, value text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_fit(payload jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_fit(payload jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_fit(payload jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_fit(payload jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_fit(payload jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_headers() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_headers() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_headers() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_headers() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_headers() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_in_order(relation text, mine text, first bigint, prefix text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_is_plain(kind oid) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_is_plain(kind oid) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_is_plain(kind oid) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_is_plain(kind oid) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_is_plain(kind oid) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_json(document json) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_json(document json) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_json(document json) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_json(document json) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_json(document json) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_key(captured jsonb, columns text[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_mark(relation oid, operation text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_mark(relation oid, operation text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_mark(relation oid, operation text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_mark(relation oid, operation text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_mark(relation oid, operation text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_numbers(relation oid, names text[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_position() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_position() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_position() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_position() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_position() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_setting(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_setting(name text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_setting(name text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_setting(name text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_setting(name text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_settings(arguments bytea) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_settings(arguments bytea) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_settings(arguments bytea) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_settings(arguments bytea) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_settings(arguments bytea) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_simple(relation oid, key_at smallint[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_simple_key(captured jsonb, column_name text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_text(captured jsonb, column_name text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_valid_headers() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_valid_headers() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_valid_headers() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_valid_headers() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_valid_headers() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.capture_whole(captured jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.capture_whole(captured jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.capture_whole(captured jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.capture_whole(captured jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.capture_whole(captured jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_config(sink text, config jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_config(sink text, config jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_config(sink text, config jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_config(sink text, config jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_config(sink text, config jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_event_type() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_event_type() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_event_type() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_event_type() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_event_type() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_laggard(laggard text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_laggard(laggard text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_laggard(laggard text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_laggard(laggard text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_laggard(laggard text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_max_rows(max_rows integer) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_max_rows(max_rows integer) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_max_rows(max_rows integer) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_max_rows(max_rows integer) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_max_rows(max_rows integer) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_old(what text, period interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_old(what text, period interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_old(what text, period interval) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_old(what text, period interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_old(what text, period interval) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_organization_limit() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_organization_limit() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_organization_limit() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_organization_limit() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_organization_limit() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_period(period interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_period(period interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_period(period interval) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_period(period interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_period(period interval) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_rate(rate text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_rate(rate text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_rate(rate text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_rate(rate text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_rate(rate text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_replay(id bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_replay(id bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_replay(id bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_replay(id bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_replay(id bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_subscription() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_subscription() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_subscription() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_subscription() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_subscription() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.check_topic_pattern(pattern text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.check_topic_pattern(pattern text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.check_topic_pattern(pattern text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.check_topic_pattern(pattern text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.check_topic_pattern(pattern text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.clean_default(log text, rest regclass, key name, until timestamp with time zone, laggard text, mark xid8, OUT done text, OUT reason text, OUT rows bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.convert_default(log text, rest regclass, border timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.copy_owed(part regclass, low timestamp with time zone, high timestamp with time zone, owed_before timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.count_positions(positions int8multirange) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.count_positions(positions int8multirange) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.count_positions(positions int8multirange) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.count_positions(positions int8multirange) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.count_positions(positions int8multirange) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.covered_until(log text, at timestamp with time zone, OUT top timestamp with time zone, OUT beyond timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.declare_handler(name text, topics text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.declare_handler(name text, topics text[]) TO outbox_relay;
GRANT ALL ON FUNCTION outbox_internal.declare_handler(name text, topics text[]) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.delete_old(what text, period interval, after timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.delete_old(what text, period interval, after timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.delete_old_at(what text, period interval, after timestamp with time zone, at timestamp with time zone, OUT rows bigint, OUT newest timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.drop_if_settled(log text, parent regclass, rest regclass, part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8, may_lock boolean, OUT reason text, OUT emptied boolean) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.drop_partition(log text, period interval, laggard text, OUT done text, OUT partition text, OUT rows bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.drop_partition(log text, period interval, laggard text, OUT done text, OUT partition text, OUT rows bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.drop_partition_at(log text, period interval, laggard text, at timestamp with time zone, OUT done text, OUT partition text, OUT rows bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.duration_is_valid(duration text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.duration_is_valid(duration text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.duration_is_valid(duration text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.duration_is_valid(duration text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.duration_is_valid(duration text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.explain_event(event outbox.events, named text, refusals jsonb) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.explain_event(event outbox.events, named text, refusals jsonb) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.explain_event(event outbox.events, named text, refusals jsonb) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.explain_event(event outbox.events, named text, refusals jsonb) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.explain_event(event outbox.events, named text, refusals jsonb) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.fence(rest regclass, key name, fence timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.find_event(event uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.find_event(event uuid) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.find_event(event uuid) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.find_event(event uuid) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.find_event(event uuid) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.finish_partition(part regclass, log text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.finish_partition(part regclass, log text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.finish_partition(part regclass, log text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.finish_partition(part regclass, log text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.finish_partition(part regclass, log text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.first_positions(positions int8multirange, wanted bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.first_unreadable(positions bigint[], created_from timestamp with time zone, created_until timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.follow_ordering() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.follow_ordering() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.forget_all_of(partition regclass) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.forget_all_of(partition regclass) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.forget_all_of(partition regclass) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.forget_all_of(partition regclass) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.forget_all_of(partition regclass) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.forget_deleted() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.forget_deleted() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.forget_events(highest xid8, newest timestamp with time zone, last bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.forget_order() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.forget_order() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.forget_truncated() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.forget_truncated() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.function_call(function text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.function_call(function text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.function_call(function text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.function_call(function text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.function_call(function text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.halt(subscription_ids bigint[], reasons text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.halt(subscription_ids bigint[], reasons text[]) TO outbox_relay;
GRANT ALL ON FUNCTION outbox_internal.halt(subscription_ids bigint[], reasons text[]) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.is_asked_for(letter outbox.dead_letters, topic text, error_like text, since timestamp with time zone, until timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.is_routed(event outbox.events) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.is_routed(event outbox.events) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.is_routed(event outbox.events) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.is_routed(event outbox.events) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.is_routed(event outbox.events) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.is_steady(log text, at timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.is_written_by(row_xmin xid, xact xid8) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.keep_for_ever(what text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.keep_for_ever(what text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.kept_by(part regclass, low timestamp with time zone, high timestamp with time zone, laggard text, mark xid8) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.last_asked(OUT delivery bigint, OUT waiting bigint, OUT page bigint, OUT replay bigint, OUT subscription bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.log_column(log text, period interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.log_column(log text, period interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.log_column(log text, period interval) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.log_column(log text, period interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.log_column(log text, period interval) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.log_partitions(log text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.log_partitions(log text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.log_partitions(log text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.log_partitions(log text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.log_partitions(log text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.make_pace() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.make_pace() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.make_partition(log text, period interval, OUT done text, OUT partition text, OUT problem text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.make_partition(log text, period interval, OUT done text, OUT partition text, OUT problem text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.make_partition_at(log text, period interval, at timestamp with time zone, OUT done text, OUT partition text, OUT problem text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.note_backlogs(subscriptions bigint[], ages double precision[], threshold double precision) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.note_backlogs(subscriptions bigint[], ages double precision[], threshold double precision) TO outbox_relay;
GRANT ALL ON FUNCTION outbox_internal.note_backlogs(subscriptions bigint[], ages double precision[], threshold double precision) TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.note_kept(log text, partition name, at timestamp with time zone, reason text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.note_period(log text, period interval, laggard text, at timestamp with time zone, problem text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.partition_width(period interval) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.partition_width(period interval) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.partition_width(period interval) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.partition_width(period interval) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.partition_width(period interval) TO outbox_relay;

GRANT SELECT,UPDATE ON TABLE outbox.replays TO outbox_relay;
GRANT SELECT ON TABLE outbox.replays TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.plan_replay(subscription text, since timestamp with time zone, until timestamp with time zone, topic text, event uuid, rate text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.position_before(at timestamp with time zone, lowest bigint, highest bigint) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.promote_keys(subscription_ids bigint[], keys text[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.record_audit(action text, subscription text, details jsonb, rows bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION outbox_internal.record_beginning() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.record_beginning() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.record_start() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.record_start() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.record_writer() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.record_writer() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.record_writer() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.record_writer() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.record_writer() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.refusal(subscription outbox.subscriptions, event outbox.events) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.refuse_for_channel(field text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.refuse_for_channel(field text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.refuse_for_channel(field text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.refuse_for_channel(field text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.refuse_for_channel(field text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.repeat_step() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.repeat_step() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.retry_after_correction() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.retry_after_correction() TO outbox_admin;

REVOKE ALL ON FUNCTION outbox_internal.ring_doorbell() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.ring_doorbell() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.ring_doorbell() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.ring_doorbell() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.ring_doorbell() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.ring_for_replay() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.ring_for_replay() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.ring_for_replay() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.ring_for_replay() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.ring_for_replay() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.ring_subscriptions() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.ring_subscriptions() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.ring_subscriptions() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.ring_subscriptions() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.ring_subscriptions() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.scanned_at_once() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.scanned_at_once() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.scanned_at_once() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.scanned_at_once() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.scanned_at_once() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.seconds_between(rate text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.seconds_between(rate text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.seconds_between(rate text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.seconds_between(rate text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.seconds_between(rate text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.sink_fields() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.sink_fields() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.sink_fields() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.sink_fields() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.sink_fields() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.stay_before_fence() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.stay_before_fence() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.stay_before_fence() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.stay_before_fence() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.stay_before_fence() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.subscription_id(name text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.subscription_id(name text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.subscription_id(name text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.subscription_id(name text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.subscription_id(name text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.take_waiting(subscription text, topic text, event uuid, error_like text, max_rows integer, to_retry boolean) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.timeline() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.timeline() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.timeline() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.timeline() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.timeline() TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.topic_expression(pattern text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.topic_expression(pattern text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.topic_expression(pattern text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.topic_expression(pattern text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.topic_expression(pattern text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.topic_pattern_is_valid(pattern text) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.traced_event(id uuid) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.traced_event(id uuid) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.traced_event(id uuid) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.traced_event(id uuid) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.traced_event(id uuid) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.unfence(rest regclass) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.unfence(rest regclass) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.unfence(rest regclass) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.unfence(rest regclass) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.unfence(rest regclass) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.unpark(dead_letters bigint[]) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.unpark(dead_letters bigint[]) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.unpark(dead_letters bigint[]) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.unpark(dead_letters bigint[]) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.unpark(dead_letters bigint[]) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.was_asked_since(delivery bigint, waiting bigint, page bigint, replay bigint, subscription bigint, low timestamp with time zone, high timestamp with time zone) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.watch_partition(part regclass) FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.watch_partition(part regclass) TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.watch_partition(part regclass) TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.watch_partition(part regclass) TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.watch_partition(part regclass) TO outbox_relay;

REVOKE ALL ON FUNCTION outbox_internal.watch_partitions() FROM PUBLIC;
GRANT ALL ON FUNCTION outbox_internal.watch_partitions() TO outbox_admin;
GRANT ALL ON FUNCTION outbox_internal.watch_partitions() TO outbox_monitor;
GRANT ALL ON FUNCTION outbox_internal.watch_partitions() TO outbox_publisher;
GRANT ALL ON FUNCTION outbox_internal.watch_partitions() TO outbox_relay;

GRANT SELECT ON TABLE outbox.announcements TO outbox_relay;
GRANT SELECT ON TABLE outbox.announcements TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.pauses TO outbox_relay;
GRANT SELECT ON TABLE outbox.pauses TO outbox_admin;

GRANT SELECT ON TABLE outbox.asked_pauses TO outbox_relay;
GRANT SELECT ON TABLE outbox.asked_pauses TO outbox_admin;

GRANT SELECT ON TABLE outbox.attempts_default TO outbox_relay;
GRANT SELECT ON TABLE outbox.attempts_default TO outbox_admin;

GRANT SELECT ON TABLE outbox.audit TO outbox_relay;
GRANT SELECT ON TABLE outbox.audit TO outbox_admin;
GRANT SELECT ON TABLE outbox.audit TO outbox_monitor;

GRANT SELECT ON TABLE outbox.beginnings TO outbox_relay;
GRANT SELECT ON TABLE outbox.beginnings TO outbox_admin;

GRANT SELECT ON TABLE outbox.captures TO outbox_publisher;
GRANT SELECT ON TABLE outbox.captures TO outbox_relay;
GRANT SELECT ON TABLE outbox.captures TO outbox_admin;
GRANT SELECT ON TABLE outbox.captures TO outbox_monitor;

GRANT SELECT ON TABLE outbox.compatibility TO outbox_relay;
GRANT SELECT ON TABLE outbox.compatibility TO outbox_admin;

GRANT SELECT,UPDATE ON TABLE outbox.cursor TO outbox_relay;
GRANT SELECT ON TABLE outbox.cursor TO outbox_admin;
GRANT SELECT ON TABLE outbox.cursor TO outbox_monitor;

GRANT SELECT,INSERT ON TABLE outbox.declared_sinks TO outbox_relay;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.declared_sinks TO outbox_admin;

GRANT SELECT ON TABLE outbox.event_ids TO outbox_relay;
GRANT SELECT ON TABLE outbox.event_ids TO outbox_admin;

GRANT INSERT(id) ON TABLE outbox.event_ids TO outbox_publisher;

GRANT SELECT,INSERT,DELETE ON TABLE outbox.routed_early TO outbox_relay;
GRANT SELECT ON TABLE outbox.routed_early TO outbox_admin;

GRANT SELECT,DELETE,UPDATE ON TABLE outbox.starts TO outbox_relay;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.starts TO outbox_admin;

GRANT SELECT ON TABLE outbox.event_status TO outbox_relay;
GRANT SELECT ON TABLE outbox.event_status TO outbox_admin;
GRANT SELECT ON TABLE outbox.event_status TO outbox_monitor;

GRANT SELECT ON TABLE outbox.event_types TO outbox_relay;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.event_types TO outbox_admin;

GRANT UPDATE(state_reason) ON TABLE outbox.event_types TO outbox_relay;

GRANT SELECT ON TABLE outbox.events_default TO outbox_relay;
GRANT SELECT ON TABLE outbox.events_default TO outbox_admin;

GRANT SELECT ON SEQUENCE outbox.events_position_seq TO outbox_relay;
GRANT SELECT ON SEQUENCE outbox.events_position_seq TO outbox_admin;
GRANT SELECT ON SEQUENCE outbox.events_position_seq TO outbox_monitor;

GRANT SELECT ON TABLE outbox.forgotten TO outbox_relay;
GRANT SELECT ON TABLE outbox.forgotten TO outbox_admin;
GRANT SELECT ON TABLE outbox.forgotten TO outbox_monitor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.gateways TO outbox_relay;
GRANT SELECT ON TABLE outbox.gateways TO outbox_admin;
GRANT SELECT ON TABLE outbox.gateways TO outbox_monitor;

GRANT SELECT ON TABLE outbox.generation TO outbox_relay;
GRANT SELECT ON TABLE outbox.generation TO outbox_admin;

GRANT SELECT ON TABLE outbox.here TO outbox_relay;
GRANT SELECT ON TABLE outbox.here TO outbox_admin;
GRANT SELECT ON TABLE outbox.here TO outbox_monitor;

GRANT SELECT,UPDATE ON TABLE outbox.identity TO outbox_relay;
GRANT SELECT ON TABLE outbox.identity TO outbox_admin;
GRANT SELECT ON TABLE outbox.identity TO outbox_monitor;

GRANT SELECT ON TABLE outbox.log_status TO outbox_relay;
GRANT SELECT ON TABLE outbox.log_status TO outbox_admin;
GRANT SELECT ON TABLE outbox.log_status TO outbox_monitor;

GRANT SELECT ON TABLE outbox.migrations TO outbox_relay;
GRANT SELECT ON TABLE outbox.migrations TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.order_leases TO outbox_relay;
GRANT SELECT ON TABLE outbox.order_leases TO outbox_admin;

GRANT SELECT ON TABLE outbox.organization_limits TO outbox_relay;
GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.organization_limits TO outbox_admin;

GRANT SELECT ON TABLE outbox.owed TO outbox_relay;
GRANT SELECT ON TABLE outbox.owed TO outbox_admin;

GRANT SELECT,UPDATE ON TABLE outbox.paces TO outbox_relay;
GRANT SELECT ON TABLE outbox.paces TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.parked_keys TO outbox_relay;
GRANT SELECT ON TABLE outbox.parked_keys TO outbox_admin;

GRANT SELECT ON TABLE outbox.parked TO outbox_relay;
GRANT SELECT ON TABLE outbox.parked TO outbox_admin;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.relay_subscriptions TO outbox_relay;
GRANT SELECT ON TABLE outbox.relay_subscriptions TO outbox_admin;
GRANT SELECT ON TABLE outbox.relay_subscriptions TO outbox_monitor;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE outbox.relays TO outbox_relay;
GRANT SELECT ON TABLE outbox.relays TO outbox_admin;
GRANT SELECT ON TABLE outbox.relays TO outbox_monitor;

GRANT SELECT ON TABLE outbox.replay_status TO outbox_relay;
GRANT SELECT ON TABLE outbox.replay_status TO outbox_admin;
GRANT SELECT ON TABLE outbox.replay_status TO outbox_monitor;

GRANT SELECT ON TABLE outbox.retention_kept TO outbox_relay;
GRANT SELECT ON TABLE outbox.retention_kept TO outbox_admin;
GRANT SELECT ON TABLE outbox.retention_kept TO outbox_monitor;

GRANT SELECT ON TABLE outbox.retention_marks TO outbox_relay;
GRANT SELECT ON TABLE outbox.retention_marks TO outbox_admin;

GRANT SELECT ON TABLE outbox.retention_periods TO outbox_relay;
GRANT SELECT ON TABLE outbox.retention_periods TO outbox_admin;
GRANT SELECT ON TABLE outbox.retention_periods TO outbox_monitor;

GRANT SELECT ON TABLE outbox.retention_status TO outbox_relay;
GRANT SELECT ON TABLE outbox.retention_status TO outbox_admin;
GRANT SELECT ON TABLE outbox.retention_status TO outbox_monitor;

GRANT SELECT ON TABLE outbox.sinks TO outbox_relay;
GRANT SELECT ON TABLE outbox.sinks TO outbox_admin;

GRANT SELECT,INSERT,UPDATE ON TABLE outbox.subscription_health TO outbox_relay;
GRANT SELECT ON TABLE outbox.subscription_health TO outbox_admin;

GRANT SELECT ON TABLE outbox.subscription_status TO outbox_relay;
GRANT SELECT ON TABLE outbox.subscription_status TO outbox_admin;
GRANT SELECT ON TABLE outbox.subscription_status TO outbox_monitor;

GRANT SELECT ON TABLE outbox.token_key TO outbox_relay;
GRANT SELECT ON TABLE outbox.token_key TO outbox_admin;
