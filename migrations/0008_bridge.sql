-- Bridge: a trigger that publishes each row that is inserted into an outbox table which an
-- application has already. See docs/bridge.md.
--
-- The settings of a bridge are in the argument of its trigger, as JSON: names of columns and pieces
-- of text, never SQL, because the trigger runs with the rights of its function's owner.

-- A part of a topic from a value: what a topic cannot have becomes '_'. An empty segment stands
-- between two dots, of which one is put at either end.
create function outbox_internal.bridge_topic(value text) returns text
language sql immutable as $$
    select btrim(regexp_replace(
                     '.' || regexp_replace(coalesce(value, ''), '[*[:cntrl:] ]', '_', 'g') || '.',
                     '[.](?=[.])', '._', 'g'),
                 '.')
$$;

-- A payload from text: JSON if it is JSON, otherwise a string.
create function outbox_internal.bridge_json(value text) returns jsonb
language plpgsql immutable as $$
begin
    return value::jsonb;
exception
    when others then
        return to_jsonb(value);
end;
$$;

create function outbox_internal.bridge_rows() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO, YMD'
set intervalstyle = 'iso_8601'
set bytea_output = 'hex'
set extra_float_digits = 1
as $$
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
$$;

create function outbox.bridge(
    "table" regclass,
    topic   text default null,
    key     text default null,
    payload text default null,
    id      text default null
) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
$$;
comment on function outbox.bridge is
    'Publish each row that is inserted into an outbox table of your own. topic: text with names of '
    'columns in braces. key, payload, id: names of columns. The columns of Debezium are known. '
    'Calling it twice changes nothing. outbox.release ends it. For the owner of the table who is '
    'also a member of outbox_publisher or outbox_admin.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
