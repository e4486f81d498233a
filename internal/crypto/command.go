package crypto

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"

	"agent/internal/errs"
)

const (
	commandStderr = 1000            // bytes of its standard error in a message
	commandGrace  = 5 * time.Second // after it was killed, for its output to end
)

// runIdentityCommand returns what the command prints. The command itself does
// not appear in messages: it can hold a token.
func runIdentityCommand(ctx context.Context, command string) ([]byte, error) {
	const hint = "Run the identity_command (AGENT_IDENTITY_COMMAND) by hand: it must print the identities and exit with 0."
	out, problems := capped{most: maxKeyFile}, capped{most: commandStderr}
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdout, cmd.Stderr = &out, &problems
	// What the shell started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = commandGrace
	err := cmd.Run()
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errs.Wrap(ctx.Err(), errs.Identity, hint, "run identity command")
	case errors.Is(err, exec.ErrWaitDelay):
		return nil, errs.New(errs.Identity, hint,
			"the identity command left a process behind that keeps its output open")
	case err != nil:
		return nil, errs.Wrap(fmt.Errorf("%w%s", err, shown(problems)), errs.Identity, hint, "run identity command")
	case out.over:
		return nil, errs.New(errs.Identity, hint, "the identity command prints more than %d bytes", maxKeyFile)
	}
	return out.buf.Bytes(), nil
}

// shown makes standard error fit for one line of a message.
func shown(problems capped) string {
	text := strings.TrimSpace(problems.buf.String())
	switch {
	case text == "":
		return ""
	case isSecret(text):
		return "; its standard error is not shown, since a secret key is in it"
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, text)
	return "; it says: " + text
}

// capped keeps the first bytes of what is written to it and drops the rest.
type capped struct {
	buf  bytes.Buffer
	most int
	over bool
}

// Write never fails.
func (c *capped) Write(p []byte) (int, error) {
	keep := min(len(p), c.most-c.buf.Len())
	c.buf.Write(p[:keep])
	c.over = c.over || keep < len(p)
	return len(p), nil
}
