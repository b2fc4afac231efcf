"""The database: schema, connections and SQL. Decides nothing about jobs; called by the service layer only."""
