package prefetch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// directoryID tells a directory from any other that is or was at its path.
func directoryID(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("look at directory: %w", err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino), nil
}
