-- Tables and functions for a database that receives events, each exactly once by (source, id). Printed by
-- `pgoutbox inbox`. Run it there as the owner of the database; it can be repeated. It needs nothing
-- else of pgoutbox.
--
-- Grant access to the relay's login: grant usage on schema outbox to …; grant insert, select on outbox.inbox,
-- outbox.accepted to …; grant execute on function outbox.inbox_accept, outbox.inbox_deliver to …
create schema if not exists outbox;

-- Events received by the sink postgres without a function. Read them in the order of `position` and delete
-- them.
create table if not exists outbox.inbox (
    source         text        not null,
    id             uuid        not null,
    topic          text        not null,
    key            text,
    payload        jsonb       not null,
    headers        jsonb       not null,
    organization   text,
    user_id        text,
    schema_version integer,
    created_at     timestamptz not null,
    received_at    timestamptz not null default now(),
    position       bigint generated always as identity,
    primary key (source, id)
);

-- Events that a function or your code has processed. Keep rows as long as an event may be repeated by retries
-- or redrives.
create table if not exists outbox.accepted (
    source      text        not null,
    id          uuid        not null,
    accepted_at timestamptz not null default now(),
    primary key (source, id)
);

-- Whether an event is new. Call it first in the transaction that processes an event from a webhook or broker.
create or replace function outbox.inbox_accept(source text, id uuid) returns boolean
language plpgsql as $$
begin
    insert into outbox.accepted (source, id) values (inbox_accept.source, inbox_accept.id) on conflict do nothing;
    return found;
end;
$$;

-- Call a function f(event jsonb) for each new event, each in its own savepoint.
create or replace function outbox.inbox_deliver(function text, sources text[], events text[])
returns table (n integer, code text, message text)
language plpgsql as $$
declare
    target  regproc := to_regproc(function);
    event   jsonb;
begin
    if target is null then
        raise exception using errcode = '42883', message = format('function %s does not exist or is not unique', function);
    end if;
    for place in 1 .. cardinality(events) loop
        n := place;
        begin
            event := events[place]::jsonb;
            if outbox.inbox_accept(sources[place], (event ->> 'id')::uuid) then
                execute format('select %s($1)', target) using event;
            end if;
            code := null;
            message := null;
        exception when others then
            get stacked diagnostics code = returned_sqlstate, message = message_text;
        end;
        return next;
    end loop;
end;
$$;
