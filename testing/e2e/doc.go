// Package e2e holds the end-to-end tests: the real agent beside real
// PostgreSQL servers, from the archive_command to the restored cluster. What
// the design promises is tested here by name (TestPromise...).
package e2e
