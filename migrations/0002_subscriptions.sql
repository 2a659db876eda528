-- Subscriptions. Rows are written by migrations, the command line or by hand. Relays follow within
-- a second.

create table outbox.subscriptions (
    id            bigint      generated always as identity primary key,
    name          text        not null unique,
    topics        text[]      not null,
    sink          text        not null,
    config        jsonb       not null default '{}',
    match         jsonb,
    filter        text,
    transform     text,
    schema_version integer,
    organization  text,
    keys          text[],
    ordering      text        not null default 'none',
    on_exhausted  text        not null default 'skip',
    "coalesce"    text        not null default 'none',
    rate          text,
    retry         jsonb       not null default '{}',
    max_in_flight integer,
    active        boolean     not null default true,
    state         text        not null default 'pending',
    state_reason  text,
    -- while it is gone: events up to this position are owed, which were committed before
    owed_until    bigint,
    resumed_at    timestamptz,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    -- last transaction that changed the row; relays reload by it
    changed       xid8        not null default pg_current_xact_id(),
    constraint state_is_known check (state in ('pending', 'ok', 'invalid', 'gone', 'disabled'))
);
comment on table outbox.subscriptions is
    'Which events are sent where; with the sink live: which channels live clients can join.';
comment on column outbox.subscriptions.match is
    'Only events whose payload contains this value: payload @> match. Null: all events.';
comment on column outbox.subscriptions.filter is
    'Only events for which this CEL expression is true. Null: all events.';
comment on column outbox.subscriptions.transform is
    'A CEL expression whose value is sent instead of the payload. Null: the payload is sent '
    'unchanged.';
comment on column outbox.subscriptions.schema_version is
    'Version of payloads to send: lower versions are upcast by event types, higher ones become '
    'dead letters. Null: payloads are sent unchanged.';
comment on column outbox.subscriptions.organization is
    'Only events of this organization. Null: events of every organization.';
comment on column outbox.subscriptions.ordering is
    'none, or key: of the events with one key at most one is in flight, in the order of positions, '
    'also while one is retried.';
comment on column outbox.subscriptions.on_exhausted is
    'With ordering = key, when an event becomes a dead letter: skip (its key goes on), park (the '
    'later events of its key wait for outbox.redrive or outbox.discard), halt (the subscription is '
    'paused).';
comment on column outbox.subscriptions."coalesce" is
    'none, or key: an event that waits is not sent when a newer one of its key waits too. Needs '
    'ordering = key.';
comment on column outbox.subscriptions.rate is
    'The most deliveries in a time, by all relays together, such as 50/s. Null: no limit.';
comment on column outbox.subscriptions.state is
    'pending (no relay has read this version of the row); ok; invalid (a relay cannot use the row, '
    'see state_reason); gone (the destination answered 410); disabled (it failed for longer than '
    'retry.disable_after).';
comment on column outbox.subscriptions.owed_until is
    'While the state is gone: what lies up to this position was committed before, and is delivered '
    'after outbox.resume().';
comment on column outbox.subscriptions.resumed_at is
    'When it was resumed or changed: pauses that the destination asked for before are over.';

-- Whether a text is a topic pattern: segments separated by dots; `*` is one segment, `**` any
-- number, `ord*` a prefix.
create function outbox_internal.topic_pattern_is_valid(pattern text) returns boolean
language sql immutable strict parallel safe as $$
    select length(pattern) between 1 and 255
       and pattern ~ '^([*][*]|[^.*[:cntrl:] ]*[*]|[^.*[:cntrl:] ]+)'
                     '([.]([*][*]|[^.*[:cntrl:] ]*[*]|[^.*[:cntrl:] ]+))*$'
$$;

-- Whether a text is a duration: a number and a unit, at most ten years.
create function outbox_internal.duration_is_valid(duration text) returns boolean
language sql immutable strict parallel safe as $$
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
$$;

-- Refuses what is not a rate.
create function outbox_internal.check_rate(rate text) returns boolean
language plpgsql immutable parallel safe as $$
begin
    if rate !~ '^[1-9][0-9]{0,6}/(s|m|h)$' then
        raise exception using errcode = '22023',
            message = format('rate: %L is not a rate', rate),
            hint = 'Write a number of deliveries and a unit: ''50/s'', ''600/m'' or ''1000/h''; '
                   'null for no limit.';
    end if;
    return true;
end;
$$;

-- The sinks of this version, and the fields of their configs with the types that JSON has for them.
-- A test compares them with the code.
create function outbox_internal.sink_fields()
returns table (sink text, field text, types text[], is_required boolean)
language sql immutable parallel safe as $$
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

-- Sinks of other programs, which embed a relay.
create table outbox.declared_sinks (
    name text primary key check (name ~ '^[a-z][a-z0-9_-]{0,49}$')
);

create view outbox.sinks as
    select known.sink as name, true as is_built_in,
           coalesce(jsonb_object_agg(known.field,
                                     array_to_string(known.types, ' or ')
                                         || case when known.is_required then ', required'
                                                 else '' end)
                        filter (where known.field is not null),
                    '{}') as fields
      from outbox_internal.sink_fields() as known
     group by known.sink
    union all
    select declared.name, false, null
      from outbox.declared_sinks as declared
     where declared.name not in (select known.sink from outbox_internal.sink_fields() as known);
comment on view outbox.sinks is
    'The sinks that a subscription can name, and the fields of their configs. fields is null for '
    'sinks of other programs, which outbox.declare_sink made known.';

create function outbox.declare_sink(name text) returns boolean
language plpgsql as $$
begin
    if exists (select from outbox.sinks as known where known.name = declare_sink.name) then
        return false;
    end if;
    insert into outbox.declared_sinks (name) values (declare_sink.name) on conflict do nothing;
    return found;
end;
$$;
comment on function outbox.declare_sink is
    'Let subscriptions name a sink of your own program. Relays declare theirs when they start. '
    'Returns whether it was new.';

-- Refuses a config that no sink of this name takes.
create function outbox_internal.check_config(sink text, config jsonb) returns void
language plpgsql stable as $$
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

-- Refuses a field that says how deliveries are made: to a channel there are none.
create function outbox_internal.refuse_for_channel(field text) returns boolean
language plpgsql as $$
begin
    raise exception using errcode = '22023',
        message = format('%s: means nothing for a channel (sink live), to which nothing is owed',
                         refuse_for_channel.field),
        hint = 'Leave it out. Clients of a channel say themselves from where on they want events.';
end;
$$;

-- Refuses mistakes that the database can detect, with the field and a hint. A relay reports others
-- as state = 'invalid'.
create function outbox_internal.check_subscription() returns trigger
language plpgsql as $$
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
$$;

create trigger check_subscription before insert or update on outbox.subscriptions
    for each row execute function outbox_internal.check_subscription();

-- A number that grows with every committed change of a subscription. Routing reads it in the
-- snapshot in which it reads events, so an event committed after a subscription is always matched
-- against it.
create table outbox.generation (
    only_row boolean primary key default true check (only_row),
    value    bigint not null
);
insert into outbox.generation (value) values (1);

-- Deferred to the commit, so that a long transaction with a changed subscription blocks no other;
-- once per transaction.
create function outbox_internal.bump_generation() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    if current_setting('outbox.generation_bumped_by', true)
       is distinct from pg_current_xact_id()::text then
        perform set_config('outbox.generation_bumped_by', pg_current_xact_id()::text, true);
        update outbox.generation set value = value + 1;
    end if;
    return null;
end;
$$;

create constraint trigger bump_generation after insert or update or delete on outbox.subscriptions
    deferrable initially deferred for each row execute function outbox_internal.bump_generation();

-- Notifies sleeping relays, so that they follow a change at once instead of at the next poll.
create function outbox_internal.ring_subscriptions() returns trigger
language plpgsql as $$
begin
    if current_setting('outbox.doorbell', true) is distinct from 'off' then
        perform pg_catalog.pg_notify('outbox_doorbell', '');
    end if;
    return null;
end;
$$;

create trigger ring_subscriptions after insert or update or delete on outbox.subscriptions
    for each statement execute function outbox_internal.ring_subscriptions();

-- Pauses that destinations asked for (Retry-After). Not in outbox.subscriptions: a destination that
-- asks every second makes no relay reload. Rows of deleted subscriptions are removed when they end.
create table outbox.pauses (
    subscription_id bigint      primary key,
    until           timestamptz not null,
    asked_at        timestamptz not null
) with (fillfactor = 50);
-- the newest, which routing compares with what it knows
create index pauses_asked_at on outbox.pauses (asked_at);

create view outbox.asked_pauses as
    select pause.subscription_id, pause.until
      from outbox.pauses as pause
      join outbox.subscriptions as subscription
        on subscription.id = pause.subscription_id
     where pause.until > now()
       and pause.asked_at > coalesce(subscription.resumed_at, '-infinity');
comment on view outbox.asked_pauses is
    'The pauses that destinations asked for (Retry-After) and that are not over.';

-- Backfills: new subscriptions that receive past events. The first routing step that knows the
-- subscription records which events are past: those visible in `settled`, and those of the open
-- window up to `page_after`. Routing delivers all others, so none is missed or repeated. Relays
-- then read the log up to `until` and delete the row.
create table outbox.starts (
    subscription_id bigint      primary key references outbox.subscriptions on delete cascade,
    -- first time of events; null: all events in the log
    since           timestamptz
        constraint since_is_a_time check (since between '0001-01-01Z' and '9999-12-31Z'),
    settled         pg_snapshot,                  -- null: not recorded yet
    window_end      pg_snapshot,
    page_after      bigint,
    until           bigint,                       -- highest position of a past event
    position        bigint      not null default 0  -- last position that was read
);

create function outbox.subscribe(
    name          text,
    topics        text[],
    sink          text,
    config        jsonb   default '{}',
    filter        text    default null,
    transform     text    default null,
    organization  text    default null,
    ordering      text    default 'none',
    retry         jsonb   default '{}',
    keys          text[]  default null,
    max_in_flight integer default null,
    match         jsonb   default null,
    start         text    default 'now',
    schema_version integer default null,
    on_exhausted  text    default 'skip',
    rate          text    default null,
    "coalesce"    text    default 'none'
) returns bigint
language plpgsql as $$
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
comment on function outbox.subscribe is
    'Create or change a subscription. Calling it twice changes nothing. A pause is kept. Past '
    'events are delivered only with start. Returns the id.';

-- The id of a subscription, or an error with its name.
create function outbox_internal.subscription_id(name text) returns bigint
language plpgsql stable as $$
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

create function outbox.unsubscribe(name text) returns boolean
language plpgsql as $$
begin
    delete from outbox.subscriptions as existing where existing.name = unsubscribe.name;
    return found;
end;
$$;
comment on function outbox.unsubscribe is
    'Delete a subscription and its pending deliveries. Dead letters stay. Returns whether it '
    'existed.';

create function outbox.pause(name text) returns boolean
language plpgsql as $$
begin
    update outbox.subscriptions as existing set active = false
     where existing.id = outbox_internal.subscription_id(pause.name) and existing.active;
    return found;
end;
$$;
comment on function outbox.pause is
    'Stop sending. New deliveries are still recorded. Returns whether this changed anything.';

create function outbox.resume(name text) returns boolean
language plpgsql as $$
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
comment on function outbox.resume is
    'Send again after a pause, 410 (gone) or disabling. Returns whether this changed anything.';

-- For programs that embed a relay: their login may edit only the subscriptions of its handlers.
create function outbox_internal.declare_handler(name text, topics text[]) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
comment on function outbox_internal.declare_handler is
    'Called by programs with handlers when their relay starts. Creates the subscription or updates '
    'its topics. Returns the id.';
