package crypto

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"agent/internal/errs"
)

func TestSources(t *testing.T) {
	idA, recA := generate(t, false)
	idB, recB := generate(t, true)
	private, public := sshKey(t, "ed25519", "")
	rsa, rsaPublic := sshKey(t, "rsa", "")
	file := write(t, "# created: yesterday\r\n# public key: x\r\n"+idA+"\r\n\n"+private+"\n"+rsa)
	ids := NewIdentities(t.Context(), Sources{
		File: file, Text: "\n" + idB + "\n", Command: "echo ignored >&2; cat " + write(t, private),
	})
	if !ids.Given() {
		t.Fatal("not given")
	}
	warnings, err := ids.Load()
	if err != nil || len(warnings) != 0 {
		t.Fatalf("%q, %v", warnings, err)
	}
	for _, rec := range []string{recA, recB, public, rsaPublic} {
		if got, err := open(ids, seal(t, recipients(t, rec), []byte("raw"), nil)); err != nil || string(got) != "raw" {
			t.Errorf("%.20s: %q, %v", rec, got, err)
		}
	}
	if n := len(ids.cached()); n != 5 {
		t.Errorf("%d identities", n)
	}
}

func TestSourcesRefuse(t *testing.T) {
	id, rec := generate(t, false)
	pq, _ := generate(t, true)
	locked, _ := sshKey(t, "ed25519", "secret words")
	ecdsa, _ := sshKey(t, "ecdsa", "")
	private, _ := sshKey(t, "ed25519", "")
	secrets := []string{id, pq, locked, ecdsa, private}
	for name, c := range map[string]struct {
		sources Sources
		want    string
	}{
		"cut":                {Sources{Text: id[:50]}, "line 1 of AGENT_IDENTITY: malformed secret key"},
		"longer":             {Sources{Text: "# x\n\n" + id + "Q"}, "line 3 of AGENT_IDENTITY: malformed secret key"},
		"bad character":      {Sources{Text: id[:30] + "b" + id[31:]}, "malformed secret key"},
		"odd character":      {Sources{Text: id[:30] + "é" + id[31:]}, "malformed secret key"},
		"post-quantum cut":   {Sources{Text: pq[:70]}, "malformed post-quantum secret key"},
		"lower case":         {Sources{Text: strings.ToLower(id)}, "this is no identity"},
		"without prefix":     {Sources{Text: id[16:]}, "this is no identity"},
		"recipient":          {Sources{Text: rec}, "public key"},
		"plugin":             {Sources{Text: "AGE-PLUGIN-YUBIKEY-1QQQ"}, "plugins are not supported"},
		"encrypted file":     {Sources{Text: magic + "-> scrypt x 18\n"}, "encrypted identity file"},
		"armored file":       {Sources{Text: "-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n-----END AGE ENCRYPTED FILE-----\n"}, "encrypted identity file"},
		"passphrase":         {Sources{Text: locked}, "protected by a passphrase"},
		"other type":         {Sources{Text: ecdsa}, "malformed private key, or one of another type"},
		"private key cut":    {Sources{Text: private[:len(private)/2]}, "malformed private key"},
		"second is bad":      {Sources{Text: private + "\n" + id[:60]}, "malformed secret key"},
		"only comments":      {Sources{Text: "# nothing"}, "no identity in it"},
		"no file":            {Sources{File: "/nonexistent/key"}, "/nonexistent/key"},
		"folder":             {Sources{File: t.TempDir()}, "is a directory"},
		"huge file":          {Sources{File: write(t, strings.Repeat("#\n", maxKeyFile))}, "more than"},
		"bad file":           {Sources{File: write(t, id[:60])}, "line 1 of identity file"},
		"bad beside good":    {Sources{Text: id, File: write(t, id[:60])}, "malformed"},
		"command fails":      {Sources{Command: "echo vault is sealed >&2; exit 3"}, "exit status 3; it says: vault is sealed"},
		"command leaks":      {Sources{Command: "echo " + id + " >&2; exit 3"}, "not shown"},
		"command is silent":  {Sources{Command: "exit 1"}, "exit status 1"},
		"command is missing": {Sources{Command: "/nonexistent/tool " + id}, "exit status 127"},
		"command is empty":   {Sources{Command: "true"}, "no identity in it"},
		"command is garbage": {Sources{Command: "echo " + id[:60]}, "malformed secret key"},
		"command is endless": {Sources{Command: "yes | head -c 3000000"}, "prints more than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewIdentities(t.Context(), c.sources).Load()
			wantError(t, err, errs.Identity, c.want)
			withoutSecrets(t, err, secrets...)
		})
	}
}

func TestCommandStopsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(t.TempDir(), "started")
	if err := syscall.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	ids := NewIdentities(ctx, Sources{Command: "sleep 1000 & echo > " + started + "; wait"})
	done := make(chan error)
	go func() {
		_, err := ids.Load()
		done <- err
	}()
	if _, err := os.ReadFile(started); err != nil { // waits for the command
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errs.KindOf(err) != errs.Identity {
		t.Fatal(err)
	}
}

// Identities are loaded at first use, once, however many use them.
func TestLoadsOnceAndLate(t *testing.T) {
	id, rec := generate(t, false)
	sealed := seal(t, recipients(t, rec), []byte("raw"), nil)
	log := filepath.Join(t.TempDir(), "log")
	ids := NewIdentities(t.Context(), Sources{Command: "echo run >> " + log + "; echo " + id})
	if _, err := os.Stat(log); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("loaded before it was used: %v", err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if got, err := open(ids, sealed); err != nil || string(got) != "raw" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	wg.Wait()
	if _, err := open(ids, sealed); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != "run\n" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestFailedLoadIsTriedAgain(t *testing.T) {
	id, rec := generate(t, false)
	path := filepath.Join(t.TempDir(), "key")
	ids := NewIdentities(t.Context(), Sources{File: path})
	sealed := seal(t, recipients(t, rec), []byte("raw"), nil)
	_, err := open(ids, sealed)
	wantError(t, err, errs.Identity, "no such file")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cause is lost: %v", err)
	}
	if err := os.WriteFile(path, []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := open(ids, sealed); err != nil || string(got) != "raw" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestWarnsOfOpenFile(t *testing.T) {
	id, _ := generate(t, false)
	for mode, warn := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o440: false, 0o640: false, 0o644: true, 0o660: true, 0o604: true} {
		path := write(t, id)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		warnings, err := NewIdentities(t.Context(), Sources{File: path}).Load()
		if err != nil || (len(warnings) == 1) != warn || warn && !strings.Contains(warnings[0], path) {
			t.Errorf("%04o: %q, %v", mode, warnings, err)
		}
	}
}

func TestWriteIdentityFile(t *testing.T) {
	created := time.Date(2026, 11, 20, 10, 15, 30, 0, time.UTC)
	for _, pq := range []bool{false, true} {
		id, rec := generate(t, pq)
		path := filepath.Join(t.TempDir(), "key")
		if err := WriteIdentityFile(path, id, rec, created); err != nil {
			t.Fatal(err)
		}
		want := "# created: 2026-11-20T10:15:30Z\n# public key: " + rec + "\n" + id + "\n"
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%v, %v", info.Mode(), err)
		}
		ids := NewIdentities(t.Context(), Sources{File: path})
		if got, err := open(ids, seal(t, recipients(t, rec), []byte("raw"), nil)); err != nil || !bytes.Equal(got, []byte("raw")) {
			t.Fatalf("%q, %v", got, err)
		}
		// Never over a file that is there.
		wantError(t, WriteIdentityFile(path, "other", "other", created), errs.Usage, "file exists")
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if err := WriteIdentityFile(filepath.Join(t.TempDir(), "none", "key"), "a", "b", created); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzParseIdentities(f *testing.F) {
	id, _ := generate(f, false)
	pq, _ := generate(f, true)
	private, _ := sshKey(f, "ed25519", "")
	f.Add([]byte(id + "\n" + private + "\n# x\n" + pq))
	f.Add([]byte("-----BEGIN \n-----END \n-----BEGIN "))
	f.Add([]byte("-----END x-----BEGIN y"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ids, err := parseIdentities("fuzz", text)
		if (err == nil) != (len(ids) > 0) {
			t.Fatalf("%d identities, %v", len(ids), err)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Fatalf("the message quotes too much: %v", err)
		}
	})
}
