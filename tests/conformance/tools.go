//go:build tools

// Package conformance holds no code: it pins the version of the Kubernetes project's critest, which
// tests/install.sh builds from here with `go test -c`, unmodified.
package conformance

import _ "sigs.k8s.io/cri-tools/pkg/validate"
