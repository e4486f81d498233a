// Package harness runs real PostgreSQL servers for tests, of every major the
// agent supports, and the agent beside them as the same operating system user.
//
// A test starts a server with Start and need not stop it: all that the package
// starts ends with the test, also when it fails or its process is killed, and
// all folders go with it. When the test failed, the end of the server's log is
// printed. A server that is not installed fails the test with the command that
// installs it; nothing is ever skipped.
//
// PostgreSQL refuses to run as root. Run by root, everything (server, tools,
// agent) runs as the user postgres, otherwise as the current user. Files that
// a server or the agent must reach therefore belong into TempDir, not into
// testing.TB's own, which is closed to other users.
//
// A Server's methods may be called by one goroutine at a time, except for those
// that run SQL, which may run side by side as long as the server runs. Methods
// that take a testing.TB end that test with Fatal and must be called from its
// goroutine.
package harness
