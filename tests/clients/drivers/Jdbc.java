/** Publishes with JDBC. */
import java.sql.*;
import java.util.*;

public class Jdbc {
    // docs:begin
    static UUID publish(Connection connection, int order, String json) throws SQLException {
        connection.setAutoCommit(false);
        try (var insert = connection.prepareStatement("insert into orders (id, total) values (?, 2500)");
                var publish = connection.prepareStatement("select outbox.publish(?, ?::jsonb, key => ?)")) {
            insert.setInt(1, order);
            insert.executeUpdate();
            publish.setString(1, "shop.orders.create");
            publish.setString(2, json);
            publish.setString(3, String.valueOf(order));
            var rows = publish.executeQuery();
            rows.next();
            var id = rows.getObject(1, UUID.class);
            connection.commit();
            return id;
        } catch (SQLException error) {
            connection.rollback();
            throw error;
        }
    }
    // docs:end

    static final String[][] CALLS = {
        {
            "select outbox.publish(?, ?)",
            "select outbox.publish(?, cast(? as jsonb))",
            "insert into outbox.events (topic, payload) values (?, ?)",
        },
        {
            "select outbox.publish(?, '{}', key => ?)",
            "select outbox.publish(?, '{}', key => cast(? as text))",
            "insert into outbox.events (topic, payload, key) values (?, '{}', ?)",
        },
    };

    static void trials(Connection connection, String argument, String given, Object value) throws SQLException {
        var calls = CALLS[argument.equals("payload") ? 0 : 1];
        for (int call = 0; call < calls.length; call++) {
            var topic = UUID.randomUUID().toString();
            String error = null;
            try (var statement = connection.prepareStatement(calls[call])) {
                statement.setString(1, topic);
                statement.setObject(2, value);
                statement.execute();
                connection.commit();
            } catch (SQLException failure) {
                connection.rollback();
                error = failure.getMessage();
            }
            System.out.printf(
                    "{\"argument\": %s, \"given\": %s, \"call\": %d, \"topic\": %s, \"error\": %s}%n",
                    quoted(argument), quoted(given), call, quoted(topic), quoted(error));
        }
    }

    static String quoted(String text) {
        if (text == null) return "null";
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + '"';
    }

    public static void main(String[] arguments) throws SQLException {
        var url = java.net.URI.create(System.getenv("DATABASE_URL"));
        var order = Integer.parseInt(System.getenv("ORDER"));
        var json = "{\"id\": " + order + ", \"total\": 2500}";
        var object = new org.postgresql.util.PGobject();
        object.setType("jsonb");
        object.setValue(json);
        for (var setting : List.of("", "&stringtype=unspecified")) {
            var address = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath();
            var account = "?user=" + url.getUserInfo();
            try (var connection = DriverManager.getConnection(address + account + setting)) {
                connection.setAutoCommit(false);
                if (!setting.isEmpty()) {
                    trials(connection, "payload", "setString, with stringtype=unspecified", json);
                    continue;
                }
                System.out.printf("{\"id\": \"%s\"}%n", publish(connection, order, json));
                try {
                    publish(connection, order, json);
                } catch (SQLException error) {
                    System.out.printf("{\"repeated\": %s}%n", quoted(error.getMessage()));
                }
                trials(connection, "payload", "setString", json);
                trials(connection, "payload", "PGobject of type jsonb", object);
                trials(connection, "key", "setString", String.valueOf(order));
                trials(connection, "key", "setInt", order);
                trials(connection, "key", "UUID", UUID.randomUUID());
            }
        }
    }
}
