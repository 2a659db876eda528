-- For a database that receives events: where they arrive, each exactly once by (source, id). Printed by `pgoutbox inbox --sql`; run it
-- there, as the owner of that database, as often as you like. It needs nothing else of pgoutbox.
--
-- Let the login the relay uses in: grant usage on schema outbox to …; grant insert, select on outbox.inbox, outbox.accepted to …;
-- grant execute on function outbox.inbox_accept, outbox.inbox_deliver to …
create schema if not exists outbox;

-- Events as they came, for the sink postgres without a function. Your code reads them in the order of `position` and deletes them.
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

-- What was handed to a function or accepted by your code. Keep rows for as long as an event may come again: retries and redrives.
create table if not exists outbox.accepted (
    source      text        not null,
    id          uuid        not null,
    accepted_at timestamptz not null default now(),
    primary key (source, id)
);

-- Whether an event is new. Call it first in the transaction that does the work: webhooks, brokers, whatever may come twice.
create or replace function outbox.inbox_accept(source text, id uuid) returns boolean
language plpgsql as $$
begin
    insert into outbox.accepted (source, id) values (inbox_accept.source, inbox_accept.id) on conflict do nothing;
    return found;
end;
$$;

-- Call a function f(event jsonb) for each event that is new, each with a savepoint of its own.
create or replace function outbox.inbox_deliver(function text, sources text[], events text[])
returns table (n integer, code text, message text)
language plpgsql as $$
declare
    target  regproc := to_regproc(function);
    event   jsonb;
begin
    if target is null then
        raise exception using errcode = '42883', message = format('there is no function %s, or several', function);
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
