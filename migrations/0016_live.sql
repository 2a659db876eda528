-- Live clients, which follow the log themselves: what they cannot get any more because it was
-- removed, and the processes that serve them.

-- What was removed of the log: a client that had not come to it must be told so. It is kept by
-- triggers of every partition, in the transaction that removes: whoever no longer sees an event
-- sees here that it was removed.
create table outbox.forgotten (
    only_row   boolean     primary key default true check (only_row),
    -- highest transaction id; null: none, or only by another cluster that this is a copy of
    xid        xid8,
    created_at timestamptz not null,
    position   bigint      not null
);
comment on table outbox.forgotten is
    'One row once something was removed of outbox.events: the highest transaction id, the newest '
    'time and the highest position of a removed event.';

-- Records that events were removed. Whoever drops or detaches a partition calls it before, with
-- what is in there; deletes and truncates do so themselves.
create function outbox_internal.forget_events(highest xid8, newest timestamptz, last bigint)
returns boolean
language plpgsql as $$
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
comment on function outbox_internal.forget_events is
    'Record that events up to this transaction id, time and position leave the log. Returns '
    'whether there were any.';

-- As their owner: who may delete need not have rights on outbox.forgotten.
create function outbox_internal.forget_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.forget_events(
                -- max(xid8) is younger than PostgreSQL 14
                (select event.xid from removed as event order by event.xid desc limit 1),
                (select max(event.created_at) from removed as event),
                (select max(event.position) from removed as event));
    return null;
end;
$$;

-- All of a table cannot be read while everybody waits for its lock. Times grow with positions, but
-- for transactions that overlap, so the newest is among the last positions.
create function outbox_internal.forget_all_of(partition regclass) returns boolean
language plpgsql as $$
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
$$;
comment on function outbox_internal.forget_all_of is
    'Record that all events of a partition leave the log. Call it before the partition is dropped '
    'or detached, in the same transaction and with the lock that this takes.';

create function outbox_internal.forget_truncated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform outbox_internal.forget_all_of(tg_relid::regclass);
    return null;
end;
$$;

-- Triggers of statements are not inherited: a delete from a partition would not count.
create function outbox_internal.watch_partitions() returns integer
language plpgsql as $$
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
comment on function outbox_internal.watch_partitions is
    'Make removals from partitions of outbox.events count. Call it after making a partition. '
    'Returns how many were not watched.';
select outbox_internal.watch_partitions();

-- Signs the tokens of live clients, so that nobody makes one. The same for all gateways.
create table outbox.token_key (
    only_row boolean primary key default true check (only_row),
    key      bytea   not null default sha256(
        convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'))
);
comment on table outbox.token_key is
    'Signs the tokens of live clients. With another key all tokens are refused.';
insert into outbox.token_key default values;

-- Processes with live clients. While there is one, relays tell of new events that they read, by
-- notifications on outbox_news: publishers do not notify while a relay is awake.
create table outbox.gateways (
    name        text        primary key,
    started_at  timestamptz not null default now(),
    seen_at     timestamptz not null default now(),
    connections integer     not null,
    version     text        not null
);
comment on table outbox.gateways is
    'Processes that serve live clients. Each reports every 5 s, and does not count after 15 s '
    'without a report.';

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
