-- Order per key: which relay delivers an ordered subscription, and the keys that are parked.

-- An ordered subscription is delivered by one relay at a time, which knows what of each key is in
-- flight. When it dies, its lease ends and another relay goes on.
-- Without a foreign key: who has locked a subscription delays no delivery.
create table outbox.order_leases (
    subscription_id bigint      primary key,
    lease_token     uuid        not null,
    due_at          timestamptz not null,             -- end of the lease
    relay           text        not null
) with (fillfactor = 50);

-- Keys whose later events wait because an event became a dead letter (on_exhausted = park).
create table outbox.parked_keys (
    subscription_id bigint      not null,
    key             text        not null,
    parked_at       timestamptz not null default clock_timestamp(),
    dead_letter_id  bigint      not null,
    primary key (subscription_id, key)
);
create index parked_keys_dead_letter on outbox.parked_keys (dead_letter_id);

-- Makes the first waiting delivery of each of these keys due, unless the key is parked.
create function outbox_internal.promote_keys(subscription_ids bigint[], keys text[])
returns bigint
language plpgsql as $$
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

-- The keys that these dead letters parked go on.
create function outbox_internal.unpark(dead_letters bigint[]) returns bigint
language plpgsql as $$
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

create view outbox.parked as
    select subscription.name as subscription, parked.key, parked.parked_at, parked.dead_letter_id,
           letter.event_id, letter.topic, letter.reason, letter.status, letter.answer,
           (select count(*)
              from outbox.deliveries as delivery
             where delivery.subscription_id = parked.subscription_id
               and delivery.key = parked.key) as waiting
      from outbox.parked_keys as parked
      join outbox.subscriptions as subscription on subscription.id = parked.subscription_id
      left join outbox.dead_letters as letter on letter.id = parked.dead_letter_id;
comment on view outbox.parked is
    'One row for each key that is parked: the dead letter that parked it, and how many later '
    'events of the key wait. outbox.redrive or outbox.discard of that dead letter lets the key go '
    'on; so does outbox.unpark.';

create function outbox.unpark(subscription text, key text default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
comment on function outbox.unpark is
    'Let parked keys of a subscription go on with their next event, without the one that parked '
    'them: its dead letter stays. key: one of them; null: all. Returns how many.';

-- Pauses subscriptions whose order a dead letter would break, and returns them. Relays may pause no
-- others. One that somebody has locked is not waited for.
create function outbox_internal.halt(subscription_ids bigint[], reasons text[])
returns setof bigint
language sql security definer set search_path = pg_catalog, pg_temp as $$
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

-- What waits follows a change of `ordering`.
create function outbox_internal.follow_ordering() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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

create function outbox_internal.forget_order() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    delete from outbox.parked_keys where subscription_id = old.id;
    return null;
end;
$$;

create trigger forget_order after delete on outbox.subscriptions
    for each row execute function outbox_internal.forget_order();
-- A routing step that read the subscription as one without an order is made again, so that it
-- leases nothing beside the relay that delivers it now. At the commit: nothing is locked before.
create function outbox_internal.repeat_step() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    update outbox.cursor set step = step + 1;
    return null;
end;
$$;
create constraint trigger repeat_step after update on outbox.subscriptions
    deferrable initially deferred
    for each row when (old.ordering = 'none' and new.ordering = 'key')
    execute function outbox_internal.repeat_step();
create trigger follow_ordering after update on outbox.subscriptions
    for each row when (old.ordering is distinct from new.ordering)
    execute function outbox_internal.follow_ordering();

revoke execute on all functions in schema outbox, outbox_internal from public;
select outbox.grant_roles();
