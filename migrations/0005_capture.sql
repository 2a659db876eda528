-- Capture: triggers that publish each change of a table as an event, for tables chosen by their
-- owners. See docs/capture.md.
--
-- All settings of a capture are in the argument of its triggers, as JSON. So they are renamed,
-- dropped, dumped and restored with the table, and statements read no other table. Columns are
-- stored by name and by number: numbers survive a rename; names are used after a restore, which may
-- change numbers.

-- A value as text. A number has no zeros at the end of its fraction: 1.50 and 1.5 are the same key.
create function outbox_internal.capture_text(captured jsonb, column_name text) returns text
language sql stable as $$
    select case when strpos(captured ->> column_name, '.') > 0
                     and jsonb_typeof(captured -> column_name) = 'number'
                then trim_scale((captured ->> column_name)::numeric)::text
                else captured ->> column_name end
$$;

-- The key of an event: the values of these columns, joined by '/', with '%' and '/' in values
-- escaped as %25 and %2F. Null if a value is null. A key that is too long is cut and ends in its
-- SHA-256.
create function outbox_internal.capture_key(captured jsonb, columns text[]) returns text
language plpgsql stable as $$
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

-- A payload within the limit: removes the largest values and lists their names in "omitted".
create function outbox_internal.capture_fit(payload jsonb) returns jsonb
language plpgsql stable as $$
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

-- The payload for a change of a row. `before` is null for an insert, `after` for a delete. Null if
-- no visible column changed.
create function outbox_internal.capture_payload(
    before jsonb,
    after  jsonb,
    hidden text[],
    diff   boolean
) returns jsonb
language plpgsql stable as $$
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

-- Converts json to jsonb. A value that jsonb cannot hold (a NUL character, half a surrogate pair,
-- 1e999999) becomes a string, so that it does not fail the write.
create function outbox_internal.capture_json(document json) returns jsonb
language plpgsql stable as $$
begin
    return document::jsonb;
exception
    when others then
        return to_jsonb(document::text);
end;
$$;

-- Whether to_jsonb can safely convert values of this type in a function with the rights of its
-- owner, the current user. to_jsonb calls casts to json, and the owner of a type can define such a
-- cast with any function. So the owners of all contained types must already have the rights of the
-- current user. The type must not contain json, which may hold values that jsonb cannot.
create function outbox_internal.capture_is_plain(kind oid) returns boolean
language plpgsql stable as $$
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

-- An expression that converts a value of this type like to_jsonb, but runs only code of PostgreSQL:
-- `format` calls the type's output function, which only superusers can define, and never a cast.
create function outbox_internal.capture_expression(kind oid, value text) returns text
language plpgsql stable as $$
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
$$;

-- The numbers of those of these columns that exist, in this order.
create function outbox_internal.capture_numbers(relation oid, names text[]) returns int2[]
language sql stable as $$
    select coalesce(array_agg(a.attnum order by array_position(names, a.attname::text)), '{}')
      from pg_catalog.pg_attribute as a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attname = any (names)
$$;

-- PostgreSQL copies the following functions of SQL into the queries that call them, so they cost
-- less than functions of PL/pgSQL.

-- The name of the column of the key, for a table whose rows to_jsonb can convert as they are: no
-- type may contain json or have a cast of somebody else's. Otherwise null.
create function outbox_internal.capture_simple(relation oid, key_at int2[])
returns table (key_column text)
language sql stable as $$
    select case when bool_and(a.atttypid < 16384
                              and a.atttypid not in (114, 199)
                              and a.attgenerated <> 'v')  -- not computed in a trigger
                then max(a.attname::text) filter (where a.attnum = any (key_at)) end
      from pg_catalog.pg_attribute as a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
$$;

-- capture_key for one column.
create function outbox_internal.capture_simple_key(captured jsonb, column_name text) returns text
language sql stable as $$
    select case when length(captured ->> column_name) > 512
                     or strpos(captured ->> column_name, '.') > 0
                then outbox_internal.capture_key(captured, array[column_name])
                else captured ->> column_name end
$$;

-- capture_payload for an insert or a delete, without hidden columns.
create function outbox_internal.capture_whole(captured jsonb) returns jsonb
language sql stable as $$
    select case when pg_column_size(captured) <= 8000 and octet_length(captured::text) <= 262000
                then jsonb_build_object('row', captured)
                else outbox_internal.capture_payload(null, captured, '{}', false) end
$$;

-- A setting of the session; an empty one counts as none.
create function outbox_internal.capture_setting(name text) returns text
language sql stable as $$
    select nullif(current_setting(name, true), '')
$$;

-- Headers from the settings of the session. They may come from a client, so invalid ones are left
-- out and do not fail the write.
create function outbox_internal.capture_valid_headers() returns jsonb
language plpgsql stable as $$
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

create function outbox_internal.capture_headers() returns jsonb
language sql stable as $$
    select case when current_setting('outbox.traceparent', true) <> ''
                     or current_setting('outbox.tracestate', true) <> ''
                then outbox_internal.capture_valid_headers() else '{}' end
$$;

-- The order of events when triggers of the application change rows of the table again. Their
-- statements end, and write their events, before the capture of the statement that runs the
-- triggers has written its own. So the condition of each trigger for statements, which PostgreSQL
-- evaluates when the rows are changed and before any such trigger runs, adds the initial of the
-- operation to a setting of the transaction: what is captured from then on, until the trigger runs,
-- belongs behind its own events.
create function outbox_internal.capture_mark(relation oid, operation text) returns text
language sql immutable as $$
    select format('pg_catalog.set_config(%1$L, pg_catalog.concat('
                  'pg_catalog.current_setting(%1$L, true), %2$L), true) is not null',
                  'outbox.capturing_' || relation, upper(left(operation, 1)))
$$;

-- A position before those of the events that are written next. Null if the owner of the capture may
-- not use the log's sequence: then events stay where they are.
create function outbox_internal.capture_position() returns bigint
language plpgsql as $$
begin
    return nextval('outbox.events_position_seq');
exception when insufficient_privilege then
    return null;
end;
$$;

-- Ends the capture of a statement when it is not the only open one of its table, or when others
-- have ended since its rows were changed. `mine` is the initial of this one, whose events have
-- positions above `first`. Before the initials the setting holds, for each number of open ones,
-- from which position on events belong behind theirs (`behind`), and where those of the same
-- statement began that have ended (`began`): an upsert is an insert and an update.
create function outbox_internal.capture_in_order(
    relation text,
    mine     text,
    first    bigint,
    prefix   text
) returns void
language plpgsql as $$
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
$$;

-- The trigger function of all captured tables. It runs as its owner, so that writers of a captured
-- table need no rights on the outbox. Its settings make payloads and keys independent of the
-- session.
--
-- A table that shows all its columns and has a primary key of one column takes a short path of few
-- queries and few expressions, for PL/pgSQL prepares each of them again in each transaction.
create function outbox_internal.capture_changes() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'iso_8601'
set bytea_output = 'hex'
set extra_float_digits = 1
as $$
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
$$;

-- Implements outbox.capture, with the rights of the caller and a safe search path. The caller's
-- search path is used only for the condition.
create function outbox_internal.attach_capture(
    relation    regclass,
    topic       text,
    operations  text[],
    columns     text[],
    exclude     text[],
    condition   text,
    key         text,
    diff        boolean,
    caller_path text
) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
$$;

create function outbox.capture(
    "table"    regclass,
    topic      text    default null,
    operations text[]  default '{insert,update,delete}',
    columns    text[]  default null,
    exclude    text[]  default null,
    condition  text    default null,
    key        text    default null,
    diff       boolean default true
) returns text
language plpgsql as $$
begin
    return outbox_internal.attach_capture("table", topic, operations, columns, exclude, condition,
                                          key, diff, pg_catalog.current_setting('search_path'));
end;
$$;
comment on function outbox.capture is
    'Publish each change of a table as an event: <topic>.create, .update or .delete, by default '
    'schema.table.create and so on. Returns <topic>. '
    'Calling it twice changes nothing; other arguments replace the capture. For the owner of the '
    'table who is also a member of outbox_publisher or outbox_admin. '
    'topic: instead of schema.table. operations: insert, update, delete. columns or exclude: the '
    'columns in the payload; an update of other columns makes no event. '
    'condition: an expression about NEW and OLD, for each row. key: the columns of the event''s '
    'key, separated by commas, instead of the primary key. '
    'diff: whether an update contains the changed columns and their previous values.';

create function outbox.release("table" regclass) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
comment on function outbox.release is
    'Stop capturing or bridging a table. Existing events stay. Returns whether it was.';

-- The settings that outbox.capture() has stored in a trigger; null for a trigger that was made
-- otherwise.
create function outbox_internal.capture_settings(arguments bytea) returns jsonb
language plpgsql stable as $$
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

create view outbox.captures as
    select format('%I.%I', named.nspname, class.relname) as "table",
           captured.settings ->> 'topic' as topic,
           captured.operations,
           case when not captured.excludes then found.listed end as columns,
           case when captured.excludes then found.listed end as exclude,
           captured.settings ->> 'condition' as condition,
           found.key,
           (captured.settings ->> 'diff')::boolean as diff,
           nullif(concat_ws('; ',
               case when captured.disabled then 'a trigger is disabled' end,
               case when not captured.operations @> (captured.settings ->> 'operations')::text[]
                    then 'a trigger is missing' end,
               case when captured.restored
                    then 'restored from a dump: renamed columns are not followed' end,
               case when captured.restored and captured.excludes and found.listed_gone
                    then 'a column of exclude was renamed before the dump: no column is shown' end,
               case when not captured.excludes and found.listed_gone
                    then 'a column of columns was dropped' end,
               case when found.key_gone
                    then 'a column of the key was dropped: events have no key' end,
               case when found.identity_gone then 'a column of the primary key was dropped' end,
               case when found.identity_gone is not true
                     and found.identity is distinct from actual.identity
                    then 'the primary key has changed since, and the old one is still used' end,
               case when class.relispartition and captured.by_statement and not exists (
                        select from pg_partition_ancestors(captured.relation) as ancestor
                          join pg_trigger as t on t.tgrelid = ancestor.relid
                         where ancestor.relid <> captured.relation
                           and t.tgfoid = captured.tgfoid)
                    then format('it is a partition now: statements on %s are not captured',
                                pg_partition_root(captured.relation)) end,
               case when class.relkind = 'r' and exists (
                        select from pg_inherits as i
                         where i.inhparent = captured.relation
                            or (i.inhrelid = captured.relation and not class.relispartition))
                    then 'it inherits or is inherited from: changes through the parent are not '
                         'those of the child, and are captured wrongly or not at all' end,
               case when captured.settings ->> 'topic' ~ '^[^.]+[.][^.]+$'
                     and to_regclass(format('%I.%I',
                                            split_part(captured.settings ->> 'topic', '.', 1),
                                            split_part(captured.settings ->> 'topic', '.', 2)))
                         <> captured.relation
                    then format('its topic %s is the name of another table',
                                captured.settings ->> 'topic') end,
               case when exists (
                        select from pg_trigger as t
                         where t.tgrelid = any (whole.tables)
                           and t.tgrelid <> captured.relation
                           and t.tgfoid = captured.tgfoid
                           and t.tgargs = captured.tgargs
                           and t.tgenabled in ('D', 'R'))
                    then 'a trigger of a partition is disabled' end,
               'trigger ' || reentrant.after || ' changes rows of this table, which is captured '
                   'row by row, and the events of these changes may come before those of the '
                   'statement that runs it: make it a constraint trigger that is initially '
                   'deferred',
               'trigger ' || reentrant.before || ' changes other rows of this table before each '
                   'row of a statement, and the events of these changes may come before those of '
                   'the statement: make it an AFTER trigger',
               case when captured.by_statement and exists (
                        select from pg_partition_tree(captured.relation) as tree
                          join pg_class as c on c.oid = tree.relid and c.relkind in ('r', 'p')
                         where tree.relid <> captured.relation
                           and not exists (select from pg_trigger as t
                                            where t.tgrelid = tree.relid
                                              and t.tgfoid = captured.tgfoid
                                              and t.tgargs = captured.tgargs))
                    then 'a partition was added later: statements on it directly are not '
                         'captured' end
           ), '') as problem
      from (select t.tgrelid::regclass as relation, t.tgargs, t.tgfoid, decoded.settings,
                   (decoded.settings ->> 'exclude')::boolean as excludes,
                   (decoded.settings ->> 'table')::oid <> t.tgrelid as restored,
                   bool_or(t.tgenabled in ('D', 'R')) as disabled,
                   bool_or(t.tgtype::int & 1 = 0) as by_statement,
                   bool_or(t.tgtype::int & 1 = 1) as by_row,
                   bit_or(t.tgtype::int & 28) as kinds,  -- 4 insert, 8 delete, 16 update
                   array_agg(replace(t.tgname, 'outbox_capture_', '')
                             order by t.tgtype & 28 = 4 desc, t.tgtype & 28 = 16 desc) as operations
              from pg_trigger as t
             cross join lateral (
                   select outbox_internal.capture_settings(t.tgargs) as settings
                   offset 0) as decoded
             where decoded.settings is not null
               and t.tgfoid = 'outbox_internal.capture_changes()'::regprocedure
               and t.tgparentid = 0
               and not starts_with(t.tgname, 'outbox_capture_partition_')
             group by t.tgrelid, t.tgargs, t.tgfoid, decoded.settings) as captured
      join pg_class as class on class.oid = captured.relation
      join pg_namespace as named on named.oid = class.relnamespace
     cross join lateral (
           select array_agg(a.attname::text order by listed.place)
                      filter (where list.name = 'key') as key,
                  array_agg(a.attname::text order by listed.place)
                      filter (where list.name = 'identity') as identity,
                  array_agg(a.attname::text order by listed.place)
                      filter (where list.name = 'listed') as listed,
                  bool_or(a.attnum is null) filter (where list.name = 'key') as key_gone,
                  bool_or(a.attnum is null) filter (where list.name = 'identity') as identity_gone,
                  bool_or(a.attnum is null) filter (where list.name = 'listed') as listed_gone
             from (values ('key'), ('identity'), ('listed')) as list (name)
            cross join lateral unnest((captured.settings ->> list.name)::text[],
                                      (captured.settings ->> (list.name || '_at'))::int2[])
                       with ordinality as listed (name, number, place)
             left join pg_attribute as a
                    on a.attrelid = captured.relation
                   and a.attnum > 0
                   and not a.attisdropped
                   and case when captured.restored then a.attname = listed.name
                            else a.attnum = listed.number end) as found
     cross join lateral (
           select array_agg(a.attname::text order by k.place) as identity
             from pg_index as i
            cross join lateral unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
             join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
            where i.indrelid = captured.relation
              and i.indisprimary
              and k.place <= i.indnkeyatts) as actual
     cross join lateral (
           -- The table and its partitions, as an array by which an index finds their triggers.
           select array_append(array(select tree.relid::oid
                                       from pg_partition_tree(captured.relation) as tree),
                               captured.relation::oid) as tables) as whole
     cross join lateral (
           -- Triggers of the application whose own function writes to the table in a way that is
           -- captured, where capture_in_order does not put the events in order: those that run
           -- between the triggers of a capture row by row, and those that update a row which the
           -- same statement has just inserted or updated, before the others.
           select string_agg(distinct quote_ident(t.tgname), ', ')
                      filter (where t.tgtype::int & 2 = 0) as after,
                  string_agg(distinct quote_ident(t.tgname), ', ')
                      filter (where t.tgtype::int & 2 <> 0) as before
             from pg_trigger as t
             join pg_proc as p on p.oid = t.tgfoid
            where t.tgrelid = any (whole.tables)
              and not t.tgisinternal
              and t.tgparentid = 0
              and t.tgfoid <> captured.tgfoid
              and t.tgenabled <> 'D'
              and not t.tginitdeferred
              and t.tgtype::int & captured.kinds <> 0
              and t.tgtype::int & 1 = 1
              and case when t.tgtype::int & 2 = 0 then captured.by_row
                       else t.tgtype::int & 20 <> 0 and captured.kinds & 16 <> 0 end
              and regexp_replace(regexp_replace(p.prosrc, '/[*].*?[*]/', ' ', 'g'),
                                 E'--[^\n]*', ' ', 'g')
                  ~* format('(^|[^[:alnum:]_$])'
                            '(%s)[[:space:]]+'
                            '(only[[:space:]]+)?("?%s"?[.])?"?%s("|[^[:alnum:]_$.]|$)',
                            case when t.tgtype::int & 2 <> 0 then 'update'
                                 else 'insert[[:space:]]+into|merge[[:space:]]+into'
                                      || case when captured.kinds & 16 <> 0 then '|update'
                                              else '' end
                                      || case when captured.kinds & 8 <> 0
                                              then '|delete[[:space:]]+from' else '' end end,
                            regexp_replace(named.nspname, '[^[:alnum:]_]', '.', 'g'),
                            regexp_replace(class.relname, '[^[:alnum:]_]', '.', 'g'))
           ) as reentrant;
comment on view outbox.captures is
    'The captured tables and their settings. problem: fix it by capturing the table again, '
    'enabling the trigger, or as it says; null if there is none.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
