//go:build tools

// Package nodee2e holds no code: it pins the version of the Kubernetes project's node suite, which
// tests/install.sh builds from here, unmodified.
package nodee2e

import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/cmd/kubelet"
	_ "k8s.io/kubernetes/test/e2e_node"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
