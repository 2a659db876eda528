-- Capture: triggers that turn each change of a table into an event, for tables that their owners name. See docs/capture.md.
--
-- All that a capture is stands in the argument of its triggers, as JSON: it is renamed, dropped, dumped and restored with its
-- table, and a statement reads no table of ours to learn it. Columns are kept by name and by number. The numbers follow a
-- rename; after a restore, when they may mean other columns, the names count.

-- The key of an event: the values of these columns. Several are joined by '/', with '%' and '/' inside a value written as
-- %25 and %2F. Null when a value is. What is longer than a key may be ends in its SHA-256.
create function outbox.capture_key(captured jsonb, columns text[]) returns text
language plpgsql stable as $$
declare
    key  text;
    part text;
begin
    if cardinality(columns) = 1 then
        key := captured ->> columns[1];
    else
        for place in 1 .. cardinality(columns) loop
            part := replace(replace(captured ->> columns[place], '%', '%25'), '/', '%2F');
            key := case when place = 1 then part else key || '/' || part end;
        end loop;
    end if;
    if length(key) > 512 then
        key := left(key, 447) || '~' || encode(sha256(convert_to(key, 'UTF8')), 'hex');
    end if;
    return key;
end;
$$;

-- A payload that is too large, without the values that make it so, the largest first; "omitted" names them.
create function outbox.capture_fit(payload jsonb) returns jsonb
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
               octet_length(held.value::text) + coalesce(octet_length((payload -> 'previous' -> held.key)::text), 0) as size,
               octet_length(to_json(held.key)::text) + 2 as name_size
          from jsonb_each(payload -> 'row') as held
         order by 2 desc, 1
    loop
        exit when size <= 262144;
        omitted := omitted || large.key;
        size := size - large.size + large.name_size;
    end loop;
    return payload || jsonb_build_object('row', (payload -> 'row') - omitted, 'omitted', omitted)
           || case when payload ? 'previous' then jsonb_build_object('previous', (payload -> 'previous') - omitted) else '{}' end;
end;
$$;

-- What is written about a row: before is null for a new one, after for one that was deleted. Null when nothing that is shown has changed.
create function outbox.capture_payload(before jsonb, after jsonb, hidden text[], diff boolean) returns jsonb
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
            select jsonb_agg(held.key order by held.key collate "C"), jsonb_object_agg(held.key, before -> held.key)
              into changed, previous
              from jsonb_each(shown) as held
             where held.value is distinct from before -> held.key;
            payload := payload || jsonb_build_object('changed', changed, 'previous', previous);
        end if;
    end if;
    if pg_column_size(payload) > 8192 then
        payload := outbox.capture_fit(payload);
    end if;
    return payload;
end;
$$;

-- What the type json holds and jsonb does not (a NUL character, half of a surrogate pair, 1e999999) becomes a string: it must not fail the write.
create function outbox.capture_json(document json) returns jsonb
language plpgsql stable as $$
begin
    return document::jsonb;
exception
    when others then
        return to_jsonb(document::text);
end;
$$;

-- Whether to_jsonb may be given values of this type by a function that runs as its owner, who is the current user.
-- to_jsonb calls a cast to json, and the owner of a type can make one of any function: so the owner of every type within
-- must have the rights of the current user already. Who reads this type's rows must not run code as somebody else.
-- And there is no json within, which may hold what jsonb does not.
create function outbox.capture_is_plain(kind oid) returns boolean
language plpgsql stable as $$
declare
    known record;
begin
    if kind < 16384 then
        return kind not in ('pg_catalog.json'::regtype, 'pg_catalog.json[]'::regtype);
    end if;
    select t.typtype, t.typbasetype, t.typelem, t.typlen, t.typrelid, t.typowner into known from pg_catalog.pg_type as t where t.oid = kind;
    if known.typtype = 'd' then
        return outbox.capture_is_plain(known.typbasetype);
    elsif known.typelem <> 0 and known.typlen = -1 then
        return outbox.capture_is_plain(known.typelem);
    elsif known.typtype = 'c' then
        -- Its own owner could add an attribute at any time.
        return pg_catalog.pg_has_role(known.typowner, current_user, 'member')
           and not exists (select from pg_catalog.pg_attribute as a
                            where a.attrelid = known.typrelid and a.attnum > 0 and not a.attisdropped and not outbox.capture_is_plain(a.atttypid));
    end if;
    return pg_catalog.pg_has_role(known.typowner, current_user, 'member');
end;
$$;

-- An expression for a value of that type as jsonb, equal to to_jsonb, that runs no code but PostgreSQL's own: `format` calls a
-- type's output function, which only superusers can define, and never a cast.
create function outbox.capture_expression(kind oid, value text) returns text
language plpgsql stable as $$
declare
    known  record;
    item   oid;
    fields text;
begin
    if kind = 'pg_catalog.json'::regtype then
        return format('outbox.capture_json(%s)', value);
    elsif outbox.capture_is_plain(kind) then
        return format('to_jsonb(%s)', value);
    end if;
    select t.typtype, t.typbasetype, t.typelem, t.typlen, t.typrelid into known from pg_catalog.pg_type as t where t.oid = kind;
    if known.typtype = 'd' then
        return outbox.capture_expression(known.typbasetype, value);
    elsif known.typelem <> 0 and known.typlen = -1 then
        item := known.typelem;
        while exists (select from pg_catalog.pg_type as t where t.oid = item and t.typtype = 'd') loop
            select t.typbasetype into item from pg_catalog.pg_type as t where t.oid = item;
        end loop;
        if exists (select from pg_catalog.pg_type as t where t.oid = item and t.typtype <> 'c' and t.typelem = 0 and item <> 'pg_catalog.json'::regtype) then
            return format('(case when %1$s is not null then to_jsonb(format(''%%s'', %1$s)::text[]) end)', value);
        end if;
        return format('(case when %1$s is not null then (select coalesce(jsonb_agg(%2$s), ''[]'') from (select unnest(%1$s) as item offset 0) as part) end)',
                      value, outbox.capture_expression(known.typelem, 'part.item'));
    elsif known.typtype = 'c' then
        select string_agg(format('%s as %I', outbox.capture_expression(a.atttypid, format('(%s).%I', value, a.attname)), a.attname), ', ' order by a.attnum)
          into fields
          from pg_catalog.pg_attribute as a
         where a.attrelid = known.typrelid and a.attnum > 0 and not a.attisdropped;
        return format('(case when %1$s is distinct from null then (select to_jsonb(part.*) from (select %2$s) as part) end)', value, fields);
    end if;
    return format('(case when %1$s is not null then to_jsonb(format(''%%s'', %1$s)) end)', value);
end;
$$;

-- The numbers of these columns, in this order; of those that are still there.
create function outbox.capture_numbers(relation oid, names text[]) returns int2[]
language sql stable as $$
    select coalesce(array_agg(a.attnum order by array_position(names, a.attname::text)), '{}')
      from pg_catalog.pg_attribute as a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.attname = any (names)
$$;

-- What all triggers of all captured tables call. It runs as its owner, so that who writes to a captured table needs no right on
-- the outbox. Its settings make payloads and keys the same whatever the writing session prefers.
create function outbox.capture_changes() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'iso_8601' set bytea_output = 'hex' set extra_float_digits = 1
as $$
declare
    settings     jsonb   := tg_argv[0];
    prefix       text    := settings ->> 'topic';
    diff         boolean := settings ->> 'diff';
    described    oid     := settings ->> 'table';     -- whose columns the numbers mean
    key_at       int2[]  := settings ->> 'key_at';
    identity_at  int2[]  := settings ->> 'identity_at';
    listed       text[]  := settings ->> 'listed';    -- the columns that are shown, or those that are hidden
    listed_at    int2[]  := settings ->> 'listed_at';
    exclude      boolean := settings ->> 'exclude';
    all_hidden   boolean := false;
    key_columns  text[];
    identity_columns text[];
    hidden       text[];
    is_plain     boolean;
    organization text    := nullif(current_setting('outbox.organization', true), '');
    user_id      text    := nullif(current_setting('outbox.user_id', true), '');
    source       text    := nullif(current_setting('outbox.source', true), '');
    headers      jsonb   := '{}';
    header       text;
    expression   text;
    rows         bigint  := 1;                        -- of the statement: 0, 1, or 2 for more
    row_before   jsonb;
    row_after    jsonb;
    payload      jsonb;
    befores      jsonb[];
    afters       jsonb[];
begin
    if tg_level = 'STATEMENT' then
        -- A trigger that somebody made without transition tables would read these instead, with the rights of the owner.
        if to_regclass('pg_temp.outbox_before') is not null or to_regclass('pg_temp.outbox_after') is not null then
            raise exception using errcode = '42501', message = 'a temporary relation must not be called outbox_before or outbox_after',
                hint = 'These are the names that outbox.capture gives to the rows that it reads.';
        end if;
        if tg_op = 'DELETE' then
            rows := (select count(*) from (select from outbox_before limit 2) as n);
        else
            rows := (select count(*) from (select from outbox_after limit 2) as n);
        end if;
        if rows = 0 then  -- must not ring the doorbell
            return null;
        end if;
    end if;

    if tg_relid <> described
       and not exists (select from pg_partition_ancestors(tg_relid) as ancestor (relation) where ancestor.relation = described) then
        -- Restored from a dump, or a partition that has been detached: its triggers are silent.
        if starts_with(tg_name, 'outbox_capture_partition_') and not exists (
               select from pg_partition_ancestors(tg_relid) as ancestor (relation)
                 join pg_trigger as own on own.tgrelid = tg_relid and own.tgname = tg_name
                 join pg_trigger as other on other.tgrelid = ancestor.relation and other.tgfoid = own.tgfoid and other.tgargs = own.tgargs
                where ancestor.relation <> tg_relid) then
            return null;
        end if;
        described   := tg_relid;
        key_at      := outbox.capture_numbers(tg_relid, (settings ->> 'key')::text[]);
        identity_at := outbox.capture_numbers(tg_relid, (settings ->> 'identity')::text[]);
        listed_at   := outbox.capture_numbers(tg_relid, listed);
        -- A column was renamed before the dump. Better nothing is shown than what was to be hidden.
        all_hidden  := exclude and cardinality(listed_at) < cardinality(listed);
    end if;

    -- The usual case costs a third of what the general one below does: all columns are shown, and one of them is the key.
    if cardinality(listed) = 0 and cardinality(key_at) = 1 and key_at = identity_at and not exists (
           select from pg_attribute as a
            where a.attrelid = described and a.attnum > 0 and not a.attisdropped
              and (a.atttypid >= 16384 or a.atttypid in (114, 199) or a.attgenerated = 'v')) then
        key_columns := array(select a.attname::text from pg_attribute as a where a.attrelid = described and a.attnum = key_at[1] and not a.attisdropped);
        identity_columns := key_columns;
        hidden   := '{}';
        is_plain := true;
    else
        select coalesce(array_agg(a.name order by array_position(key_at, a.attnum)) filter (where a.attnum = any (key_at)), '{}'),
               coalesce(array_agg(a.name order by array_position(identity_at, a.attnum)) filter (where a.attnum = any (identity_at)), '{}'),
               coalesce(array_agg(a.name) filter (where a.is_hidden), '{}'),
               -- A long value that is not shown should not be read either.
               bool_and((case when a.atttypid < 16384 then a.atttypid not in (114, 199) else outbox.capture_is_plain(a.atttypid) end)
                        and not (a.is_hidden and a.attlen < 0))
          into key_columns, identity_columns, hidden, is_plain
          from (select attribute.attnum, attribute.atttypid, attribute.attlen, attribute.attname::text as name,
                       all_hidden or attribute.attgenerated = 'v'  -- has no value here
                       or case when exclude then attribute.attnum = any (listed_at) or attribute.attname = any (listed)
                               else not attribute.attnum = any (listed_at) end as is_hidden
                  from pg_attribute as attribute
                 where attribute.attrelid = described and attribute.attnum > 0 and not attribute.attisdropped) as a;
        if cardinality(key_columns) < cardinality(key_at) then
            key_columns := '{}';  -- a part of it was dropped
        end if;
        if cardinality(identity_columns) < cardinality(identity_at) then
            identity_columns := '{}';
        end if;
    end if;

    header := current_setting('outbox.traceparent', true);
    if header <> '' and length(header) <= 512 and header !~ '[^ -~]' then  -- it may come from a stranger, and must not fail the write
        headers := jsonb_build_object('traceparent', header);
    end if;
    header := current_setting('outbox.tracestate', true);
    if header <> '' and length(header) <= 512 and header !~ '[^ -~]' then
        headers := headers || jsonb_build_object('tracestate', header);
    end if;

    if not is_plain then
        select format('(select to_jsonb(part.*) from (select %s) as part)',
                      string_agg(case when a.atttypid < 16384 and a.atttypid not in (114, 199) then format('n.%I', a.attname)
                                      else format('%s as %I', outbox.capture_expression(a.atttypid, format('n.%I', a.attname)), a.attname) end,
                                 ', ' order by a.attnum))
          into expression
          from pg_attribute as a
         where a.attrelid = described and a.attnum > 0 and not a.attisdropped
           and (a.attname <> all (hidden) or a.attname = any (key_columns || identity_columns));
    end if;

    -- From here on the same in three ways: one row, which is what most statements write, many rows, and many that need an expression.
    if rows = 1 then
        if not is_plain then
            if tg_level = 'ROW' then
                if tg_op <> 'INSERT' then execute format('select %s from (select ($1).*) as n', expression) into row_before using old; end if;
                if tg_op <> 'DELETE' then execute format('select %s from (select ($1).*) as n', expression) into row_after using new; end if;
            else
                if tg_op <> 'INSERT' then execute format('select %s from outbox_before as n', expression) into row_before; end if;
                if tg_op <> 'DELETE' then execute format('select %s from outbox_after as n', expression) into row_after; end if;
            end if;
        elsif tg_level = 'ROW' then
            if tg_op <> 'INSERT' then row_before := to_jsonb(old.*); end if;
            if tg_op <> 'DELETE' then row_after := to_jsonb(new.*); end if;
        else
            if tg_op <> 'INSERT' then row_before := (select to_jsonb(n.*) from outbox_before as n); end if;
            if tg_op <> 'DELETE' then row_after := (select to_jsonb(n.*) from outbox_after as n); end if;
        end if;
        if row_before is not null and row_after is not null
           and outbox.capture_key(row_before, identity_columns) is distinct from outbox.capture_key(row_after, identity_columns) then
            befores := array[row_before, null];
            afters  := array[null, row_after];
        else
            befores := array[row_before];
            afters  := array[row_after];
        end if;
        for place in 1 .. cardinality(befores) loop
            payload := outbox.capture_payload(befores[place], afters[place], hidden, diff);
            if payload is not null then
                insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
                values (prefix || case when befores[place] is null then '.create' when afters[place] is null then '.delete' else '.update' end,
                        outbox.capture_key(coalesce(afters[place], befores[place]), key_columns), payload, headers, organization, user_id, source);
            end if;
        end loop;

    elsif is_plain and tg_op = 'INSERT' then
        insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
        select prefix || '.create', outbox.capture_key(n.held, key_columns), outbox.capture_payload(null, n.held, hidden, diff),
               headers, organization, user_id, source
          from (select to_jsonb(n.*) as held from outbox_after as n offset 0) as n;

    elsif is_plain and tg_op = 'DELETE' then
        insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
        select prefix || '.delete', outbox.capture_key(n.held, key_columns), outbox.capture_payload(n.held, null, hidden, diff),
               headers, organization, user_id, source
          from (select to_jsonb(n.*) as held from outbox_before as n offset 0) as n;

    elsif is_plain then
        -- PostgreSQL does not say which old row became which new one: the identity does, the primary key. A row that has another one
        -- afterwards was deleted and created. A row may come twice in one statement (by cascades of foreign keys): in its order.
        -- Without an identity, because a column of it was dropped, there is only the order. A full join is never a nested loop.
        insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
        select prefix || case when pair.before is null then '.create' when pair.after is null then '.delete' else '.update' end,
               outbox.capture_key(coalesce(pair.after, pair.before), key_columns), pair.payload, headers, organization, user_id, source
          from (select pair.*, outbox.capture_payload(pair.before, pair.after, hidden, diff) as payload
                  from (select o.held as before, n.held as after, coalesce(n.place, o.place) as place
                          from (select n.*, row_number() over (partition by n.identity order by n.place) as time
                                  from (select n.*, coalesce(outbox.capture_key(n.held, identity_columns), n.place::text) collate "C" as identity
                                          from (select to_jsonb(n.*) as held, row_number() over () as place from outbox_before as n) as n) as n) as o
                          full join (select n.*, row_number() over (partition by n.identity order by n.place) as time
                                  from (select n.*, coalesce(outbox.capture_key(n.held, identity_columns), n.place::text) collate "C" as identity
                                          from (select to_jsonb(n.*) as held, row_number() over () as place from outbox_after as n) as n) as n) as n
                            on n.identity = o.identity and n.time = o.time) as pair offset 0) as pair
         where pair.payload is not null
         order by pair.place, pair.after is not null;

    else
        execute format('
            insert into outbox.events (topic, key, payload, headers, organization, user_id, source)
            select $1 || case when pair.before is null then ''.create'' when pair.after is null then ''.delete'' else ''.update'' end,
                   outbox.capture_key(coalesce(pair.after, pair.before), $2), pair.payload, $6, $7, $8, $9
              from (select pair.*, outbox.capture_payload(pair.before, pair.after, $4, $5) as payload from (%s) as pair offset 0) as pair
             where pair.payload is not null
             order by pair.place, pair.after is not null',
            replace(case tg_op
                when 'INSERT' then 'select null::jsonb as before, {row} as after, row_number() over () as place from outbox_after as n'
                when 'DELETE' then 'select {row} as before, null::jsonb as after, row_number() over () as place from outbox_before as n'
                else '
                    select o.held as before, n.held as after, coalesce(n.place, o.place) as place
                      from (select n.*, row_number() over (partition by n.identity order by n.place) as time
                              from (select n.*, coalesce(outbox.capture_key(n.held, $3), n.place::text) collate "C" as identity
                                      from (select {row} as held, row_number() over () as place from outbox_before as n) as n) as n) as o
                      full join (select n.*, row_number() over (partition by n.identity order by n.place) as time
                              from (select n.*, coalesce(outbox.capture_key(n.held, $3), n.place::text) collate "C" as identity
                                      from (select {row} as held, row_number() over () as place from outbox_after as n) as n) as n) as n
                        on n.identity = o.identity and n.time = o.time' end, '{row}', expression))
        using prefix, key_columns, identity_columns, hidden, diff, headers, organization, user_id, source;
    end if;
    return null;
end;
$$;

-- Does the work of outbox.capture, with the rights of who called that, and with a search path that no one else can have filled:
-- the caller's own is only for the condition.
create function outbox.attach_capture(
    relation regclass, topic text, operations text[], columns text[], exclude text[], condition text, key text, diff boolean, caller_path text
) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    known       record;
    prefix      text;
    wanted      text[] := coalesce(operations, '{insert,update,delete}');
    listed      text[] := array(select distinct l.name from unnest(coalesce(columns, exclude)) as l (name) order by l.name);
    key_names   text[] := '{}';
    identity    text[];
    names       text[];
    item        text;
    argument    text;
    statements  text[];
    probe       refcursor;
begin
    if relation is null then
        raise exception using errcode = '22023', message = 'table: is null', hint = 'Name a table, for example outbox.capture(''public.orders'').';
    end if;
    select c.oid, c.relkind, c.relpersistence, c.relispartition, c.relowner, n.nspname, c.relname,
           exists (select from pg_inherits as i where i.inhrelid = c.oid or (i.inhparent = c.oid and c.relkind = 'r')) as inherits
      into known
      from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
     where c.oid = relation;

    if known.relkind not in ('r', 'p') then
        raise exception using errcode = '42809', message = format('table: %s is a %s, and only tables can be captured', relation,
            case known.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table'
                               when 'S' then 'sequence' when 't' then 'TOAST table' else 'relation without rows' end),
            hint = case when known.relkind in ('v', 'm') then 'Capture the tables beneath it.'
                        when known.relkind = 'f' then 'Capture the table where it lives; changes made there would not be seen here.'
                        else 'Name a table.' end;
    elsif known.nspname in ('pg_catalog', 'information_schema') or known.oid < 16384 then
        raise exception using errcode = '42809', message = format('table: %s is a system table', relation);
    elsif known.nspname = 'outbox' then
        raise exception using errcode = '42809', message = format('table: %s belongs to the outbox; each of its events would make another', relation);
    elsif known.relpersistence = 't' then
        raise exception using errcode = '42809', message = format('table: %s is temporary', relation),
            hint = 'It is gone with its session, and nobody else sees its rows; publish with outbox.publish what others should know.';
    elsif known.relispartition then
        raise exception using errcode = '42809', message = format('table: %s is a partition', relation),
            hint = format('Capture the whole table: outbox.capture(%L).', pg_partition_root(relation)::text);
    elsif known.inherits then
        raise exception using errcode = '42809', message = format('table: %s inherits or is inherited from', relation),
            hint = 'A change made through the parent does not run the triggers of the child. Declarative partitions can be captured.';
    elsif not pg_has_role(known.relowner, 'usage') then
        raise exception using errcode = '42501', message = format('table: must be owner of table %s', relation);
    end if;

    select coalesce(array_agg(a.attname::text order by a.attnum), '{}') into names
      from pg_attribute as a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped;

    prefix := coalesce(topic, known.nspname || '.' || known.relname);
    if length(prefix) > 248 or prefix !~ '^[^.*[:cntrl:]]+(\.[^.*[:cntrl:]]+)*$' then
        raise exception using errcode = '22023', message = format('topic: %L cannot be the beginning of a topic', prefix),
            hint = 'Segments are separated by dots and hold no star; at most 248 characters, for ".create" follows. Another one: topic => ''shop.orders''.';
    end if;

    if cardinality(wanted) = 0 then
        raise exception using errcode = '22023', message = 'operations: is empty', hint = 'To stop capturing a table: outbox.release.';
    end if;
    foreach item in array wanted loop
        if item is null or item not in ('insert', 'update', 'delete') then
            raise exception using errcode = '22023', message = format('operations: %L is not an operation', item), hint = 'Known are insert, update and delete.';
        end if;
    end loop;
    select array_agg(distinct o.operation) into wanted from unnest(wanted) as o (operation);

    if columns is not null and exclude is not null then
        raise exception using errcode = '22023', message = 'exclude: cannot be combined with columns', hint = 'Give the columns to show, or those to hide.';
    end if;
    foreach item in array listed loop
        if item is null or item <> all (names) then
            raise exception using errcode = '42703', message = format('%s: table %s has no column %L',
                case when columns is null then 'exclude' else 'columns' end, relation, item);
        end if;
    end loop;
    if cardinality(columns) = 0 or listed @> names and columns is null then
        raise exception using errcode = '22023', message = format('%s: leaves no column to show', case when columns is null then 'exclude' else 'columns' end);
    end if;

    select coalesce(array_agg(a.attname::text order by k.place), '{}') into identity
      from pg_index as i
     cross join lateral unnest(i.indkey::int2[]) with ordinality as k (attnum, place)
      join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = k.attnum
     where i.indrelid = relation and i.indisprimary and k.place <= i.indnkeyatts;
    if key is null then
        key_names := identity;
    else
        foreach item in array case when key = '' or key = any (names) then array[key] else string_to_array(key, ',') end loop
            item := case when item = any (names) then item else btrim(item) end;
            if item <> all (names) then
                raise exception using errcode = '42703', message = format('key: table %s has no column %L', relation, item),
                    hint = 'A column, or several separated by commas.';
            end if;
            key_names := key_names || item;
        end loop;
    end if;

    argument := jsonb_build_object(
        'topic', prefix, 'diff', coalesce(diff, true), 'condition', condition, 'table', relation::oid::bigint,
        'key', key_names::text, 'key_at', outbox.capture_numbers(relation, key_names)::text,
        'identity', identity::text, 'identity_at', outbox.capture_numbers(relation, identity)::text,
        'exclude', columns is null, 'listed', listed::text, 'listed_at', outbox.capture_numbers(relation, listed)::text);

    -- What is there and what should be; nothing is locked when they are the same.
    with operation as (
        -- Row by row where a condition asks for it, where nothing says which old row became which new one, and where an update
        -- may turn into an insert and a delete of partitions that nothing would put together again.
        select o.operation,
               condition is not null or (identity = '{}' and (known.relkind = 'p' or o.operation = 'update')) as by_row
          from unnest(wanted) as o (operation)
    ),
    should as (
        select relation as captured, 'outbox_capture_' || o.operation as name, o.operation, o.by_row, true as same from operation as o
        union all
        -- A statement that names a partition runs the triggers of that partition only. PostgreSQL itself gives partitions those for rows.
        select tree.relid, 'outbox_capture_partition_' || o.operation, o.operation, false, true
          from pg_partition_tree(relation) as tree join pg_class as c on c.oid = tree.relid and c.relkind in ('r', 'p'), operation as o
         where tree.relid <> relation and not o.by_row
    ),
    present as (
        select t.tgrelid::regclass as captured, t.tgname::text as name, t.tgtype::int & 1 = 1 as by_row,
               t.tgargs = convert_to(argument, getdatabaseencoding()) || decode('00', 'hex') as same
          from pg_trigger as t
         where t.tgfoid = 'outbox.capture_changes()'::regprocedure and t.tgparentid = 0
           and (t.tgrelid = relation or t.tgrelid in (select tree.relid from pg_partition_tree(relation) as tree))
    ),
    difference as (
        select present.captured as old, should.captured as new, coalesce(present.name, should.name) as name, should.operation, should.by_row
          from should full join present on present.captured = should.captured and present.name = should.name
           and present.by_row = should.by_row and present.same = should.same
         where present.captured is null or should.captured is null
    )
    select array_agg(case when d.old is not null then format('drop trigger %I on %s', d.name, d.old)
                          else format('create trigger %I after %s on %s %s for each %s execute function outbox.capture_changes(%L)',
                                      d.name, d.operation, d.new,
                                      case when d.by_row then ''
                                           else 'referencing' || case when d.operation <> 'insert' then ' old table as outbox_before' else '' end
                                                              || case when d.operation <> 'delete' then ' new table as outbox_after' else '' end end,
                                      case when d.by_row then 'row' else 'statement' end || coalesce(E' when ((' || condition || E'\n))', ''),
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
            -- A cursor takes one statement only: what ends this one and begins another is refused before it is run.
            open probe for execute pg_catalog.format(E'select (%s\n) from %s as new, %s as old where false', condition, relation, relation);
            close probe;
        end if;
        foreach item in array statements loop
            execute item;
        end loop;
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    exception
        when syntax_error_or_access_rule_violation or feature_not_supported or data_exception or invalid_object_definition or invalid_cursor_definition then
            if condition is null or sqlstate = '42501' then
                raise;
            end if;
            raise exception using errcode = sqlstate, message = format('condition: %s', sqlerrm),
                hint = 'An expression about NEW and OLD, as in the WHEN of a trigger. An insert has no OLD and a delete no NEW: name the operations it is for, such as operations => ''{update}''.';
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
    return outbox.attach_capture("table", topic, operations, columns, exclude, condition, key, diff, pg_catalog.current_setting('search_path'));
end;
$$;
comment on function outbox.capture is
    'Write each change of a table as an event: <topic>.create, .update or .delete, by default schema.table.create and so on. Returns the beginning of these topics. '
    'The same call twice changes nothing, another one replaces it. For the owner of the table who is also a member of outbox_publisher or outbox_admin. '
    'topic: instead of schema.table. operations: insert, update, delete. columns or exclude: what the payload shows; an update of nothing shown is no event. '
    'condition: an expression about NEW and OLD, for each row. key: the columns of the event''s key instead of the primary key''s, separated by commas. '
    'diff: whether an update says what changed.';

create function outbox.release("table" regclass) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    attached record;
    released boolean := false;
begin
    for attached in
        select t.tgrelid::regclass as captured, t.tgname as name
          from pg_trigger as t
         where t.tgfoid = 'outbox.capture_changes()'::regprocedure and t.tgparentid = 0
           and (t.tgrelid = "table" or t.tgrelid in (select tree.relid from pg_partition_tree("table") as tree))
    loop
        execute format('drop trigger %I on %s', attached.name, attached.captured);
        released := true;
    end loop;
    return released;
end;
$$;
comment on function outbox.release is 'Stop capturing a table; events that were written stay. Returns whether it was captured.';

-- What outbox.capture() has written into a trigger; null of a trigger that somebody else made with the same function.
create function outbox.capture_settings(arguments bytea) returns jsonb
language plpgsql stable as $$
declare
    settings jsonb;
begin
    settings := convert_from(substring(arguments for length(arguments) - 1), getdatabaseencoding())::jsonb;
    perform (settings ->> 'table')::oid, (settings ->> 'exclude')::boolean, (settings ->> 'diff')::boolean,
            (settings ->> 'key')::text[], (settings ->> 'key_at')::int2[],
            (settings ->> 'identity')::text[], (settings ->> 'identity_at')::int2[], (settings ->> 'listed')::text[], (settings ->> 'listed_at')::int2[];
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
               case when captured.restored then 'restored from a dump, so that renamed columns are not followed' end,
               case when captured.restored and captured.excludes and found.listed_gone then 'a column of exclude was renamed before, so that no column is shown' end,
               case when not captured.excludes and found.listed_gone then 'a column of columns was dropped' end,
               case when found.key_gone then 'a column of the key was dropped, so that events have no key' end,
               case when found.identity_gone then 'a column of the primary key was dropped' end,
               case when captured.by_statement and exists (
                        select from pg_partition_tree(captured.relation) as tree
                          join pg_class as c on c.oid = tree.relid and c.relkind in ('r', 'p')
                         where tree.relid <> captured.relation
                           and not exists (select from pg_trigger as t where t.tgrelid = tree.relid and t.tgfoid = captured.tgfoid and t.tgargs = captured.tgargs))
                    then 'a partition came later: what is written to it by its own name is not captured' end
           ), '') as problem
      from (select t.tgrelid::regclass as relation, t.tgargs, t.tgfoid, decoded.settings,
                   (decoded.settings ->> 'exclude')::boolean as excludes,
                   (decoded.settings ->> 'table')::oid <> t.tgrelid as restored,
                   bool_or(t.tgenabled in ('D', 'R')) as disabled,
                   bool_or(t.tgtype::int & 1 = 0) as by_statement,
                   array_agg(replace(t.tgname, 'outbox_capture_', '') order by t.tgtype & 28 = 4 desc, t.tgtype & 28 = 16 desc) as operations
              from pg_trigger as t
             cross join lateral (select outbox.capture_settings(t.tgargs) as settings offset 0) as decoded
             where decoded.settings is not null and t.tgfoid = 'outbox.capture_changes()'::regprocedure and t.tgparentid = 0
               and not starts_with(t.tgname, 'outbox_capture_partition_')
             group by t.tgrelid, t.tgargs, t.tgfoid, decoded.settings) as captured
      join pg_class as class on class.oid = captured.relation
      join pg_namespace as named on named.oid = class.relnamespace
     cross join lateral (
           select array_agg(a.attname::text order by listed.place) filter (where list.name = 'key') as key,
                  array_agg(a.attname::text order by listed.place) filter (where list.name = 'listed') as listed,
                  bool_or(a.attnum is null) filter (where list.name = 'key') as key_gone,
                  bool_or(a.attnum is null) filter (where list.name = 'identity') as identity_gone,
                  bool_or(a.attnum is null) filter (where list.name = 'listed') as listed_gone
             from (values ('key'), ('identity'), ('listed')) as list (name)
            cross join lateral unnest((captured.settings ->> list.name)::text[], (captured.settings ->> (list.name || '_at'))::int2[])
                       with ordinality as listed (name, number, place)
             left join pg_attribute as a on a.attrelid = captured.relation and a.attnum > 0 and not a.attisdropped
                   and case when captured.restored then a.attname = listed.name else a.attnum = listed.number end) as found;
comment on view outbox.captures is
    'The tables that are captured, and how. problem: what capturing them again, or enabling a trigger, would mend; null when all is well.';

revoke execute on all functions in schema outbox from public;
select outbox.grant_roles();
