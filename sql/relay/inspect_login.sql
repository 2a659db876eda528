-- Who this login is, and whether it belongs to a group, which outbox.grant_roles gives its rights.
--   $1 group
select quote_ident(current_user) as login,
       (select pg_has_role(current_user, role.oid, 'member')
          from pg_roles as role
         where role.rolname = $1::text) as is_member,
       current_setting('server_version_num')::integer as server_version;
